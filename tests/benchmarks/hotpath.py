"""The gain by the prepared responses of ``ISR.__call__``: every other way to a page in L1, beside them."""

from __future__ import annotations

import contextlib

from tests.benchmarks import paths
from tests.benchmarks.measure import interleaved, noise, noise_note, wsgi
from tests.benchmarks.report import Report, Table, ratio

#: Rounds.
FULL, QUICK = 80, 2
PREPARED, PLAIN = "prepared", "not prepared, 1 pattern"
NOISE = "noise"


def run(rounds: int) -> Report:
    ways = {
        PREPARED: paths.prepared(),
        "prepared, coherence=0": paths.asking(),
        PLAIN: paths.unprepared(1),
        "not prepared, 50 patterns": paths.unprepared(50),
        "not prepared, no pattern": paths.unprepared(0),
        "its second is over (Age)": paths.ticking(),
        "cookie of an analytics script": paths.with_header("HTTP_COOKIE", "_ga=GA1.1.1234567890.1700000000"),
        "HEAD": paths.with_header("REQUEST_METHOD", "HEAD"),
        "304": paths.not_modified(),
        "passed on (Authorization)": paths.with_header("HTTP_AUTHORIZATION", "Bearer x", "BYPASS"),
        "passed on, and invalidates (POST)": paths.with_header("REQUEST_METHOD", "POST", "BYPASS"),
    }
    with contextlib.ExitStack() as stack:
        ways["stale, rendered here"] = stack.enter_context(paths.stale("memory://", rendered_here=True))
        other = paths.stale("sqlite:///{}/pages.db", rendered_here=False)
        ways["stale, rendered by another process"] = stack.enter_context(other)
        contestants = {label: wsgi(app, environ) for label, (app, environ, _) in ways.items()}
        *rows, noisy = interleaved({**contestants, NOISE: noise()}, rounds)
        # Check again that these answers were the measured ones.
        for app, environ, word in ways.values():
            paths.prove(app, environ, word)
    table = Table("ways to a page of 20 KB in L1", "us of CPU per request", rows, PREPARED)
    bought = ratio(table.row(PLAIN), table.row(PREPARED))
    note = f"the prepared way is {bought:.1f} times as fast as match, key, look-up and headers"
    return Report([table], notes=[note, noise_note(noisy)])
