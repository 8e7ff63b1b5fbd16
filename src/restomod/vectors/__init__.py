"""From texts to vectors: what `restomod embed`, evaluation and fine-tuning compute with."""
