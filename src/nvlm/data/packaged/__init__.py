"""Datasets composed of real images that two packages bring along."""
