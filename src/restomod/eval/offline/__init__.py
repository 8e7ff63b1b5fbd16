"""The offline suite: retrieval and classification out of what is installed and was held out."""
