"""The site with the cache around it, for gunicorn; the cache takes its options from the environment."""

from __future__ import annotations

import os

from wsgi_isr import ISR

from . import broken
from .site import RULES, Site

if rule := os.environ.get("FAULTS_BREAK"):
    broken.BREAK[rule]()

application = ISR(Site(os.environ["FAULTS_DIRECTORY"], float(os.environ.get("FAULTS_SLOW", "0"))), RULES)
