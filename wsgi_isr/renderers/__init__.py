"""Processes that render in the background, and their supervisor."""
