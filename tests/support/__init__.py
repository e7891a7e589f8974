"""Helpers of tests in several directories."""

from __future__ import annotations
