"""A page that knows its reader, under a blanket ``revalidate=60``: no reader ever sees another's page."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.blog_flask.browser import Answer, Browser
from tests.live.support.server import Gunicorn

PAGES = ("/about", "/tags/databases", "/posts/what-vary-says")
ADMIN, READER, NOBODY = "Robin Vale", "Kim Ferro", "Log in"
REQUESTS = 1000


@pytest.mark.parametrize("first", [ADMIN, NOBODY], ids=["admin-comes-first", "stranger-comes-first"])
def test_two_visitors_with_a_session_and_a_stranger_each_see_their_own_page(
    first: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    env = {
        "BLOG_DB": str(tmp_path / "blog.sqlite3"),
        "BLOG_FAULTS": str(faults),
        "WSGI_ISR_STORE": f"sqlite:///{tmp_path}/pages.sqlite3",
    }
    with Gunicorn(tmp_path / "log", env, "examples.blog_flask:app") as server:
        visitors = {name: Browser(server.port) for name in (ADMIN, READER, NOBODY)}
        for name, login in ((ADMIN, "admin"), (READER, "reader")):
            assert visitors[name].log_in(login, login).status == 303
        chance = random.Random(2)
        rest = REQUESTS - len(PAGES)
        turns = [(chance.choice(list(visitors)), chance.choice(PAGES)) for _ in range(rest)]

        def take(turn: tuple[str, str]) -> tuple[str, str, Answer]:
            name, page = turn
            return name, page, visitors[name].get(page)

        answers = [take((first, page)) for page in PAGES]
        with ThreadPoolExecutor(3) as people:
            answers += people.map(take, turns)
        assert server.complaints() == []
        assert server.stop() == 0

    rendered_by = {answer.rendered_by for _, _, answer in answers}
    assert len(rendered_by) == 2, "only one of the two workers had anything to do"
    for name, page, answer in answers:
        assert answer.status == 200, f"{name} at {page}: {answer}"
        # Search only the corner that shows the logged-in user: the text of /about names all users.
        shown = {known for known in visitors if known in answer.account}
        assert shown == {name}, f"{name} at {page} was shown {answer.account!r}"

    anonymous = [answer for name, _, answer in answers if name == NOBODY]
    assert Counter(answer["Cache-Status"].split(";")[1].strip() for answer in anonymous) == {
        "hit": len(anonymous) - (len(PAGES) if first == NOBODY else 0),
        **({"fwd=uri-miss": len(PAGES)} if first == NOBODY else {}),
    }
    assert all("Set-Cookie" not in answer.headers for answer in anonymous)
    for page in PAGES:
        bodies = {answer.body for name, at, answer in answers if (name, at) == (NOBODY, page)}
        assert len(bodies) == 1, f"{len(bodies)} versions of {page} for strangers"

    own = [answer for name, _, answer in answers if name != NOBODY]
    assert {answer["Cache-Status"] for answer in own} == {'wsgi-isr; fwd=bypass; detail="cookie"'}
    assert {answer.verdict for answer in own} == {"BYPASS"}
    assert len({answer.stamp for answer in own}) > len(own) / 2, "pages of visitors with a session were reused"

    # The app was asked once for each public page, and once for each page of the two logged-in visitors.
    lines = (faults / "renders").read_text().split("\n")
    made = Counter(line.split()[2] for line in lines if line)
    assert sum(made[page] for page in PAGES) == len(PAGES) + len(own)
    figure(f"{len(answers)} requests: {len(anonymous)} by strangers, of {len(own)} with a session none from the cache")
