"""Hugging Face's layouts: the sources of a conversion, and NVLM_D there and back."""
