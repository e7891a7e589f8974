"""A whole cluster on one machine: memcached nodes, gunicorn instances of an app behind ``ISR``, and nginx in front.

``python -m cluster up`` starts a cluster. Other commands inspect it, load it, inject faults and measure it. Start
reading in :mod:`.supervisor.supervise`, which lists the parts in order. This package imports ``wsgi_isr``, never the
reverse.
"""

from __future__ import annotations
