"""From questions to answers: prompts, batched generation, a server."""
