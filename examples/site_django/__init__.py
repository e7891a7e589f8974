"""The programme of a town library in Django, with accounts, forms and CSRF, cached by ``wsgi_isr`` in one line."""

from __future__ import annotations
