"""The training loop of pretraining and supervised fine-tuning."""
