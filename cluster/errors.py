"""Errors of the cluster commands: each message is one line that says what to do."""

from __future__ import annotations


class ClusterError(Exception):
    """An order was not carried out; the message says why."""


class CannotStart(ClusterError):
    """A part could not be started."""


class NotHere(ClusterError):
    """This machine lacks an optional program or library."""


class NoSuchPart(ClusterError):
    """No part has this name: wrong usage."""


class Down(ClusterError):
    """No cluster runs in that directory."""
