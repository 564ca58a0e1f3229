"""The training stream: what a training stage reads has nothing to do with how shards are made."""
