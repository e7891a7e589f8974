"""Errors of the cluster commands. Each message is one line with a remedy."""

from __future__ import annotations


class ClusterError(Exception):
    """An order was not carried out. The message has the reason."""


class CannotStart(ClusterError):
    """A part could not be started."""


class NotInstalled(ClusterError):
    """This machine lacks an optional program or library."""


class NoSuchPart(ClusterError):
    """The command names a part that the cluster does not have."""


class Down(ClusterError):
    """The command needs a running cluster, and none runs in its directory."""
