"""A Fresh hit inside the process: against other caches, the apps themselves, and our own plain path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks import paths
from tests.benchmarks.apps import Site, bare, django, environ_of, flask
from tests.benchmarks.measure import interleaved, noise, noise_note, wsgi
from tests.benchmarks.report import Budget, Report, Table, ratio

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

#: Rounds.
FULL, QUICK = 150, 2
NOISE = "noise"
FLASK, DJANGO = "ISR around Flask", "ISR around Django"
PLAIN = "ISR, nothing prepared"
FLASK_CACHING, DJANGO_CACHE = "Flask-Caching, SimpleCache", "Django cache middleware, locmem"


def run(rounds: int) -> Report:
    site = Site()
    caches: dict[str, WSGIApplication] = {
        FLASK: paths.hit(flask(site), "isr-flask"),
        DJANGO: paths.hit(django(site), "isr-django"),
        FLASK_CACHING: flask(site, cached=True),
        DJANGO_CACHE: django(site, cached=True),
    }
    slugs = {FLASK: "isr-flask", DJANGO: "isr-django", FLASK_CACHING: "flask-caching", DJANGO_CACHE: "django-cache"}
    apps = {"bare Flask view": flask(site), "bare Django view": django(site), "bare WSGI function": bare(site)}
    for label, app in caches.items():
        for _ in range(2):
            paths.prove(app, environ_of(slugs[label]), "HIT" if label in (FLASK, DJANGO) else "")
    for app in apps.values():
        paths.prove(app, environ_of("bare"), "")
    unprepared, request, _ = paths.unprepared()

    contestants = {label: wsgi(app, environ_of(slugs[label])) for label, app in caches.items()}
    contestants[PLAIN] = wsgi(unprepared, request)
    contestants |= {label: wsgi(app, environ_of("bare")) for label, app in apps.items()}
    *rows, noisy = interleaved({**contestants, NOISE: noise()}, rounds)

    for label, slug in slugs.items():
        if site.renders[slug] != 1:
            raise AssertionError(f"{label}: rendered {site.renders[slug]} times, so these were no hits")
    table = Table("a Fresh hit, page of 20 KB, one process", "us of CPU per request", rows, FLASK)
    by_label = table.row
    return Report(
        [table],
        [
            Budget("us for a hit, at the median", by_label(FLASK).median, 1.2),
            Budget("times faster than Flask-Caching", ratio(by_label(FLASK_CACHING), by_label(FLASK)), 50, True),
            Budget("times faster than Django's cache", ratio(by_label(DJANGO_CACHE), by_label(DJANGO)), 75, True),
        ],
        [
            f"what the prepared answer buys: {ratio(by_label(PLAIN), by_label(FLASK)):.1f} x "
            "(match, key, look-up and headers, against one look into a dict; more by `hotpath`)",
            noise_note(noisy),
        ],
    )
