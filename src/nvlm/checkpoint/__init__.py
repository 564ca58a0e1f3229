"""The sharded NVLM checkpoint on disk: layout, conversion, combination."""
