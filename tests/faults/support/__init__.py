"""Helpers of the fault tests: a site of versioned rows, readers, admins, faults, and the checker of their history."""

from __future__ import annotations
