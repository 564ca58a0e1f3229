"""Text benchmarks, by EleutherAI's lm-evaluation-harness in an environment of its own."""
