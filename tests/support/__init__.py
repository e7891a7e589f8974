"""What tests of several directories share."""

from __future__ import annotations
