"""What a run will take, computed without running it."""
