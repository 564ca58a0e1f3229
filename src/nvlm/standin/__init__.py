"""Small models in Hugging Face layout, in place of the downloads where no hub is in reach."""
