"""The command; not here yet."""

from __future__ import annotations

import click


@click.group()
def main() -> None:
    """A cluster on this machine."""
