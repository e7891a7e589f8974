"""Parts that attacks share: counts, and apps that show their whole request."""

from __future__ import annotations
