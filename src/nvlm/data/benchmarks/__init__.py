"""Evaluation sets, official or packaged."""
