"""Subscribers to the events of the core."""
