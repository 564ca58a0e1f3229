"""Property tests are the same on every run, and keep no files."""

from hypothesis import settings

settings.register_profile(
    "repository", max_examples=60, deadline=None, derandomize=True, database=None
)
settings.load_profile("repository")
