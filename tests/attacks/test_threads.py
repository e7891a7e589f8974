"""Outside of the requests that an ISR knows, a cached function gives no visitor the data of another visitor.

Threads that the app starts, and middlewares around the ISR, have no context with the visitor of the request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from requests.adapters import HTTPAdapter

from tests.attacks.test_closures import NAME, USERS, VIEWS, View
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Environ, Origin, answer
from tests.behaviour.upstream import Reply, Upstream
from tests.behaviour.visitor import Conversation, Site, make_environ
from wsgi_isr import CachedSession, cached
from wsgi_isr.events import DataServed
from wsgi_isr.stores.memory import MemoryStore

Run = Callable[[Callable[[], str]], str]


def in_thread(call: Callable[[], str]) -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def in_pool(call: Callable[[], str]) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


class Around:
    """A middleware around the ISR. It sends the value of ``make`` as a header."""

    def __init__(self, app: Any, make: View) -> None:
        self._app = app
        self._make = make

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        banner = "X-Banner", str(self._make(environ)())
        body: Iterable[bytes] = self._app(environ, lambda status, headers: start_response(status, [*headers, banner]))
        return body


def banner_of(app: Any, user: str) -> str:
    seen = Conversation(app, make_environ(headers={"Authorization": user})).answer()
    return told(seen.headers["X-Banner"])


def told(text: str) -> str:
    return text[-5:] if "alice" in text else text[-3:]


@pytest.mark.parametrize("run", [in_thread, in_pool])
@pytest.mark.parametrize("name", VIEWS)
def test_a_thread_of_the_app_gives_no_visitor_what_it_has_of_another(
    make_site: MakeSite, origin: Origin, name: str, run: Run
) -> None:
    site = make_site(revalidate=60)
    origin.on("/", answer(lambda environ: run(lambda: str(VIEWS[name](environ)())).encode()))
    found = [site.visit("/", headers={"Authorization": user}).text for user in USERS]
    assert [told(text) for text in found] == USERS


@pytest.mark.parametrize("name", VIEWS)
def test_a_middleware_around_the_app_gives_no_visitor_what_it_has_of_another(make_site: MakeSite, name: str) -> None:
    around = Around(make_site(revalidate=60, watcher="nobody").isr, VIEWS[name])
    assert [banner_of(around, user) for user in USERS] == USERS


def test_the_first_request_of_a_process_gives_nothing_to_that_of_another_process(make_site: MakeSite) -> None:
    store = MemoryStore()

    def view(environ: Environ) -> Any:
        class Mine:
            user = environ[NAME]

        return cached(revalidate=60)(lambda: Mine.user)

    found = []
    for user in ("alice", "bob"):
        site = make_site(revalidate=60, store=store, watcher="nobody")
        found.append(banner_of(Around(site.isr, view), user))
        site.isr.close(0)  # in the place of another process, which would not know of this one
    assert found == ["alice", "bob"]


# Functions that are made before any request ------------------------------------------------------------------


def made_by_a_factory(connection: object, calls: list[int]) -> Any:
    @cached(revalidate=60)
    def load() -> int:
        assert connection
        calls.append(1)
        return len(calls)

    return load


def used(site: Site) -> list[tuple[str, str]]:
    return [(event.label, event.reason) for event in site.happened(DataServed)]


def test_outside_of_requests_a_function_that_holds_an_object_is_called_each_time(make_site: MakeSite) -> None:
    site, load = make_site(), made_by_a_factory(object(), [])
    assert [load(), load()] == [1, 2]
    assert used(site) == [("SKIP", "closure")] * 2


def test_in_requests_such_a_function_is_kept(make_site: MakeSite, origin: Origin) -> None:
    site, load = make_site({"/": 0}), made_by_a_factory(object(), [])
    origin.on("/", answer(lambda environ: str(load()).encode()))
    assert [site.visit("/").text for _ in range(2)] == ["1", "1"]


def test_outside_of_requests_a_refresh_of_such_a_function_is_kept(make_site: MakeSite, origin: Origin) -> None:
    site, load = make_site({"/": 0}), made_by_a_factory(object(), [])
    origin.on("/", answer(lambda environ: str(load()).encode()))
    assert load.refresh() == 1
    assert site.visit("/").text == "1"


def test_what_a_module_holds_is_kept_outside_of_requests(
    make_site: MakeSite, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holds_a_lock.py").write_text(
        "import threading\n"
        "from wsgi_isr import cached\n"
        "calls = []\n"
        "def locked(function):\n"
        "    lock = threading.Lock()\n"
        "    def run():\n"
        "        with lock:\n"
        "            return function()\n"
        "    return run\n"
        "@cached(revalidate=60)\n"
        "@locked\n"
        "def load() -> int:\n"
        "    calls.append(1)\n"
        "    return len(calls)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    site = make_site({"/": 0})
    site.visit("/")
    import holds_a_lock  # type: ignore[import-not-found]

    assert [holds_a_lock.load(), in_thread(lambda: str(holds_a_lock.load()))] == [1, "1"]


@cached(revalidate=60)
def of_the_module(number: int) -> int:
    CALLS.append(number)
    return number


CALLS: list[int] = []


@pytest.mark.parametrize("run", [in_thread, in_pool])
def test_a_function_of_a_module_is_kept_in_threads(make_site: MakeSite, origin: Origin, run: Run) -> None:
    site = make_site({"/": 0})
    CALLS.clear()
    origin.on("/", answer(lambda environ: run(lambda: str(of_the_module(1))).encode()))
    assert [site.visit("/").text for _ in range(2)] == ["1", "1"]
    assert CALLS == [1]


# Sessions ------------------------------------------------------------------------------------------------------


class Signing(HTTPAdapter):
    """An adapter that sends the name of its visitor with each request."""

    def __init__(self, user: str) -> None:
        super().__init__()
        self._user = user

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        request.headers["X-User"] = self._user
        return super().send(request, *args, **kwargs)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    server.on("/who", lambda request: Reply(200, request.headers["x-user"].encode()))
    yield server
    server.close()


@pytest.mark.parametrize("run", [in_thread, in_pool])
def test_a_session_that_a_thread_makes_with_an_adapter_of_its_own_is_not_kept(
    make_site: MakeSite, origin: Origin, upstream: Upstream, run: Run
) -> None:
    site = make_site({"/": 0})

    def fetch(user: str) -> str:
        with CachedSession(revalidate=60, name="in a thread") as session:
            session.trust_env = False
            session.mount("http://", Signing(user))
            return session.get(f"{upstream.url}/who").text

    origin.on("/", answer(lambda environ: run(lambda: fetch(environ[NAME])).encode()))
    assert [site.visit("/", headers={"Authorization": user}).text for user in USERS] == USERS


def test_a_session_of_a_script_with_an_adapter_of_its_own_is_not_kept(make_site: MakeSite, upstream: Upstream) -> None:
    assert make_site()
    found = []
    for user in USERS:
        with CachedSession(revalidate=60, name="in a script") as session:
            session.trust_env = False
            session.mount("http://", Signing(user))
            found.append(session.get(f"{upstream.url}/who").text)
    assert found == USERS
