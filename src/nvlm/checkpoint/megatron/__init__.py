"""Megatron-LM's checkpoints there and back."""
