"""Raw text to tokenised data: the steps, without the scripts and the machines that run them."""
