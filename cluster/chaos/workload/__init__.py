"""The workload of a history: a site of versioned rows behind the cache, readers, admins, and pressure on memory."""

from __future__ import annotations
