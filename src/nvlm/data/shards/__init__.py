"""From records to webdataset shards in Energon's layout."""
