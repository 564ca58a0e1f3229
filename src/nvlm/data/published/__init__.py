"""Datasets as their publishers ship them: rows of any layout, by configuration."""
