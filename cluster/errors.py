"""What can go wrong: each is one line that says what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """Not done, and why."""


class CannotStart(ClusterError):
    """A part that could not be started."""


class NotHere(ClusterError):
    """Something that this machine does not have, and that can be done without."""


class NoSuchPart(ClusterError):
    """A name that no part has: wrong usage."""


class Down(ClusterError):
    """No cluster runs in that directory."""
