"""Fetching: models and datasets from where they are published, checked and never half-made."""
