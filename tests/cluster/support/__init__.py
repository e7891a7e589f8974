"""Helpers of the cluster tests."""

from __future__ import annotations
