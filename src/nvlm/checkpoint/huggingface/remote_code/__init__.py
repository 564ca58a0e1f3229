"""Files that an export for Hugging Face carries, to be loaded with ``trust_remote_code``."""
