"""Conversations about pictures in the terminal, with a checkpoint or with a server."""
