"""Device mesh, tensor parallelism and pipeline, by PyTorch's own parts."""
