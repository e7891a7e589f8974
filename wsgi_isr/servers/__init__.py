"""Servers: their hooks, and workers that answer prepared pages themselves."""
