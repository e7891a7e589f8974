"""``python -m examples.pydoc_bottle.upgrade json``: an admin job, run when a package was upgraded.

It invalidates the pages that show parts of the package, in all processes that cache them. It needs the same
``WSGI_ISR_STORE`` as the server, from the environment.
"""

from __future__ import annotations

import argparse
import difflib
import sys

from wsgi_isr import ConfigError, InvalidationError, invalidate

from . import catalogue
from .caching import pages_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    :returns: 0 done; 1 no such package, or not every copy could be invalidated; 2 no store is known.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.pydoc_bottle.upgrade", description=__doc__)
    parser.add_argument("package", help="a top-level name: json, email, os ...")
    package = parser.parse_args(arguments).package

    known = {catalogue.package_of(name) for name in catalogue.names()}
    if package not in known:
        guess = difflib.get_close_matches(package, known, 1)
        print(f"There is no package {package!r}.", *(f"Did you mean {name}?" for name in guess), file=sys.stderr)
        return 1
    try:
        receipt = invalidate(tags=pages_of(package))
        receipt.raise_for_pending()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except InvalidationError as error:
        print(f"{package} was upgraded, but: {error}", file=sys.stderr)
        return 1
    print(f"{package} was upgraded: invalidated {', '.join(receipt.tags)} in {receipt.seconds * 1000:.0f} ms.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
