"""Servers that answer prepared pages themselves, and leave every other request to the WSGI app."""

from __future__ import annotations
