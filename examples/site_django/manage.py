#!/usr/bin/env python
"""``python examples/site_django/manage.py COMMAND``, or ``python -m examples.site_django.manage COMMAND``."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run a command of Django or of the site."""
    if not __package__:
        # Run as a file, Python looks for modules in its folder; modules of the site are named from the root.
        sys.path[0] = str(Path(__file__).resolve().parents[2])
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.site_django.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
