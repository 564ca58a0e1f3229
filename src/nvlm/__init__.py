"""NVLM: the recipe of arXiv 2409.11402 as a reproducible pipeline."""
