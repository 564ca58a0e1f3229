"""The NVLM-D model out of transformers' own modules, with its tiling, tokens and prompts."""
