"""Fine-tuning: a pretrained encoder and labelled data to a model that transformers loads."""
