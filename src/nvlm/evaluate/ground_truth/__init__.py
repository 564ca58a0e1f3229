"""Readers of the benchmarks' own ground-truth files, one module a format."""
