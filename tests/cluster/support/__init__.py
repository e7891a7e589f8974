"""What the tests of the cluster share."""

from __future__ import annotations
