"""The checkpoint on disk: its parts, its manifest, its files; docs/checkpoint.md specifies it."""
