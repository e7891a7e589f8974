"""Settings of Django for all tests of a process: Django can be configured only once."""

from __future__ import annotations

import django
from django.conf import settings


def configure() -> None:
    """Configure Django for the site of the tests (its URLs are in ``test_flask_bottle_django``)."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="not a secret",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.behaviour.test_flask_bottle_django",
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        LOGGING_CONFIG=None,
        DATABASES={},
    )
    django.setup()
