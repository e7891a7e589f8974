"""Names that the pages use without an import: the app, the data and the helpers of an imaginary site."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import bottle
from flask import Flask, Response, redirect, render_template_string, request, session

from wsgi_isr import (
    ISR,
    Rule,
    cache_life,
    cache_tag,
    cached,
    disable_draft,
    enable_draft,
    invalidate,
    is_draft,
    no_store,
    refresh,
    wrap,
)

# A name that a page uses, and that a linter would take for unused here.
__all__ = [
    "ISR", "Response", "Rule", "SimpleNamespace", "bottle", "cache_life", "cache_tag", "cached", "disable_draft",
    "enable_draft", "invalidate", "is_draft", "logging", "no_store", "os", "redirect", "refresh",
    "render_template_string", "request", "session", "wrap",
]  # fmt: skip

SECRET = "not-a-secret-of-anybody"
TOKEN = "not-a-token-of-anybody"
app = Flask("site")
app.secret_key = SECRET
all_posts = [{"slug": "hello"}]
post = SimpleNamespace(id=1, slug="hello", title="Hello")


def posts():
    return [post]


def require_editor():
    return None
