"""A cluster without servers: thousands of processes and millions of pages, through the decisions of :mod:`wsgi_isr`.

``run.py`` has the loop of events, ``site.py`` the pages, ``nodes.py`` the model of memcached, ``process.py`` one
worker, and ``figures.py`` the results.

Two choices keep it small. Pages are created at their first request. And processes are alike, so that only some of them
are followed request by request (:attr:`Parameters.followed`). For the others, only the first request for a page that is
not current matters: in a Poisson stream of requests, one exponential time. Work of followed processes is multiplied up.
Events of a page (renders, stores) happen once in the cluster, in whichever process, so they are counted unscaled.
"""

from __future__ import annotations
