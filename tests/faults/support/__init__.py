"""What fault tests share: a site of versioned rows, readers, admins, faults, and the checker of their history."""

from __future__ import annotations
