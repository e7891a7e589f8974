"""Run gunicorn as a user who may not read this Python (one below /root, for example): root imports all modules that
gunicorn needs, and not the app.

``python -c "from tests.live.support.as_user import run; run()"`` takes gunicorn's command line.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

#: Whole packages, and modules that the standard library imports late.
PACKAGES = ("encodings", "gunicorn.workers.gthread", "msgpack", "sqlite3", "werkzeug", "wsgi_isr")
LATE = ("ctypes", "difflib", "email.utils", "gzip", "linecache", "pwd", "socket", "tests.live.support.origin")
#: Modules of other systems, or with missing dependencies.
LEFT_OUT = (
    *("encodings.mbcs", "encodings.oem", "encodings.cp65001", "sqlite3.__main__"),
    "wsgi_isr.commands.demo_site.hooks",  # gunicorn's configuration, for the demo alone
)
PROGRAM = ("-c", "from tests.live.support.as_user import run; run()", "--config", "python:wsgi_isr.gunicorn")


def run() -> None:
    """Run gunicorn."""
    for name in PACKAGES:
        package = import_module(name)
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
            if module.name not in LEFT_OUT:
                import_module(module.name)
    for name in LATE:
        import_module(name)
    from gunicorn.app.wsgiapp import run

    run()
