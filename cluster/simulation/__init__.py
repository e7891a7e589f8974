"""A cluster without servers: thousands of processes and millions of pages, through the decisions of :mod:`wsgi_isr`.

``run.py`` has the loop of events, ``site.py`` the pages, ``nodes.py`` what takes the place of memcached,
``process.py`` one worker, ``figures.py`` what was found out.

Two things keep it small. Pages come into being when somebody asks for them. And processes are alike, so
that only some of them are followed request by request (:attr:`Parameters.followed`); of the others it is
enough to know when the first of them asks for a page that is not current, which for a Poisson stream of
requests is one exponential time. What each process does is multiplied up; what happens to a page happens
once, whoever does it, and is counted as it is.
"""

from __future__ import annotations
