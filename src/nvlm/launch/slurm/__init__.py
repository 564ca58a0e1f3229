"""Ranks as a job of Slurm: its batch script, the queue, and waiting for its end."""
