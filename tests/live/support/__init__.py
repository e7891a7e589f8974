"""Helpers of the live tests: real gunicorn processes, an app that is scripted by files, and visitors."""

from __future__ import annotations
