"""What a server of exports loads: a plugin of vLLM's."""
