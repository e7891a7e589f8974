"""What attacks share: how many there are, what they count, and apps that give away all they are given."""

from __future__ import annotations
