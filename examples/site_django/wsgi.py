"""``application``: the site behind its cache."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from wsgi_isr import ISR

from .caching import NO_PAGE_LOOKS_AT, RULES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.site_django.settings")
application = ISR(get_wsgi_application(), RULES, revalidate=60, ignore_cookies=NO_PAGE_LOOKS_AT)

from .database import ensure  # noqa: E402 - models can be imported from here on

# So that one command is enough to see the example. A real site migrates when it is deployed.
ensure()
