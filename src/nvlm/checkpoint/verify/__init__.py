"""Whether two checkpoints hold the same, and what is in one."""
