"""The site with the cache around it, for gunicorn; the cache takes its options from the environment."""

from __future__ import annotations

import os

from wsgi_isr import ISR

from .imported import import_first
from .site import RULES, Site

import_first()

application = ISR(Site(os.environ["CLUSTER_DIRECTORY"], float(os.environ.get("CLUSTER_SLOW", "0"))), RULES)
