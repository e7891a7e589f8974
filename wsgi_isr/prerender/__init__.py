"""Render pages ahead of visitors, into the store or into files."""
