"""Where the ranks of a stage run; no output depends on it."""
