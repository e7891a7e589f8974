"""A whole cluster on one machine: memcached nodes, gunicorn instances of an app behind ``ISR``, and nginx in front.

``python -m cluster up`` starts one; other commands look at it, load it, break it and measure it. Start reading in
:mod:`.supervise`: what runs, in which order. It imports ``wsgi_isr``, never the other way.
"""

from __future__ import annotations
