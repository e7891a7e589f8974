"""Servers: their hooks, and workers that answer hits themselves."""
