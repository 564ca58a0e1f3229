"""Benchmark tasks: prompts, batched generation, metrics, galleries."""
