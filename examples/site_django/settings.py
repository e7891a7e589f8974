"""Settings. The environment may set ``LIBRARY_DATA``, ``LIBRARY_SECRET_KEY``, ``LIBRARY_HOSTS``, ``LIBRARY_DEBUG``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

BASE = Path(__file__).resolve().parent
#: The directory of the database, the key and the stored pages; git ignores it.
DATA = Path(os.environ.get("LIBRARY_DATA") or BASE / "data").absolute()
DATA.mkdir(parents=True, exist_ok=True)

# Set in the environment, because ISR in wsgi.py, the commands of manage.py and `wsgi-isr` all read it there.
# The path is independent of the current folder: a cron job must find the same store as the server.
os.environ.setdefault("WSGI_ISR_STORE", f"sqlite:///{DATA / 'pages.sqlite3'}")


def _kept_key(path: Path) -> str:
    """Return the key in the file, which the first of several starting processes creates."""
    if not path.exists():
        from django.core.management.utils import get_random_secret_key

        with tempfile.NamedTemporaryFile("w", dir=path.parent) as new:  # readable by its owner alone
            new.write(get_random_secret_key())
            new.flush()
            try:
                os.link(new.name, path)  # atomic, and never replaces an existing key
            except FileExistsError:
                pass
    return path.read_text()


SECRET_KEY = os.environ.get("LIBRARY_SECRET_KEY") or _kept_key(DATA / "secret_key")
DEBUG = os.environ.get("LIBRARY_DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *os.environ.get("LIBRARY_HOSTS", "").split()]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "examples.site_django",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "examples.site_django.urls"
WSGI_APPLICATION = "examples.site_django.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "examples.site_django.views.made",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "library.sqlite3",
        "OPTIONS": {
            # Readers do not wait for a writer, and a transaction that will write takes its turn at once.
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
            "transaction_mode": "IMMEDIATE",
            "timeout": 10,
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SESSION_ENGINE = "django.contrib.sessions.backends.db"
STATIC_URL = "/static/"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/account/"
LOGOUT_REDIRECT_URL = "/"
LANGUAGE_CODE = "en-gb"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
# With TLS in front, add SECURE_PROXY_SSL_HEADER, SESSION_COOKIE_SECURE, CSRF_COOKIE_SECURE, CSRF_TRUSTED_ORIGINS.
# Without this, Django reports an error only by mail.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"django.request": {"level": "ERROR"}},
}
