"""What the parts of a checkpoint hold: tower, projector, decoder; names, shapes, shards."""
