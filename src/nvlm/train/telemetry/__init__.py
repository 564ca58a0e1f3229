"""What is told of a run on the way: no output depends on it, so that no stage does."""
