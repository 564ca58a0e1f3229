"""Other layouts of the same tensors: combined, repartitioned, resharded."""
