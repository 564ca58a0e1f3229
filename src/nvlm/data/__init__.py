"""Datasets as webdataset shards in Energon's layout, and the loader that reads them."""
