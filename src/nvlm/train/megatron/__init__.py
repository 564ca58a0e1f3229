"""A training stage as Megatron-LM's own examples/multimodal/train.py runs it."""
