"""Cached data is made without a visitor: no request, no session, no language, no thread-local of theirs."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import bottle
import flask
import pytest
from django.core.wsgi import get_wsgi_application
from django.test import override_settings
from django.utils import translation
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.behaviour.conftest import MakeSite
from tests.behaviour.django_settings import configure
from tests.behaviour.origin import DEADLINE, Environ, Origin, answer
from tests.behaviour.visitor import Clock, Seen, Site
from wsgi_isr import PersonalDataError, cached
from wsgi_isr.cache.executor import Reply, Status
from wsgi_isr.cache.task import Attempt
from wsgi_isr.events import DataServed
from wsgi_isr.stores.memory import MemoryStore

MakeData = Callable[..., Any]


@pytest.fixture
def app() -> flask.Flask:
    """Return an app with a login at /login/<name>. The tests add views that read the session."""
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"
    app.testing = True

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask.session["name"] = name
        return "logged in"

    return app


def cookie_of(seen: Seen) -> str:
    return seen.headers["Set-Cookie"].partition(";")[0]


# Flask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("look", "words"),
    [
        (lambda: flask.session.get("name", "stranger"), "the request of a visitor"),
        (lambda: flask.request.host, "the request of a visitor"),
        (lambda: flask.request.cookies.get("session", ""), "the request of a visitor"),
        (lambda: flask.url_for("static", filename="a.js", _external=True), "the request of a visitor"),
        (lambda: flask.g.user, "flask.g.user"),
    ],
    ids=["session", "host", "cookie", "url_for", "g"],
)
def test_a_kept_function_that_looks_at_the_visitor_fails_and_says_what_to_write(
    make_site: MakeSite, app: flask.Flask, look: Callable[[], str], words: str
) -> None:
    @cached(version=words)
    def nav() -> str:
        return look()

    @app.get("/account")
    def account() -> str:
        flask.g.user = "alice"
        return nav()

    @app.get("/side")
    def side() -> str:
        try:
            return nav()
        except PersonalDataError:
            return "nothing personal"

    site = make_site({"/login/<name>": 0, "/account": 0, "/side": 60}, app=app.wsgi_app, watcher="nobody")
    cookie = cookie_of(site.visit("/login/alice"))
    with pytest.raises(PersonalDataError) as caught:
        site.visit("/account", cookie=cookie, host="evil.example")
    assert words in str(caught.value)
    assert "nav" in str(caught.value)
    assert "pass what it needs as an argument" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert site.visit("/side").text == "nothing personal"


def test_a_kept_function_has_the_app_and_what_depends_on_it(make_site: MakeSite, app: flask.Flask) -> None:
    app.config["TITLE"] = "Kept Pages"

    @cached
    def title() -> str:
        return f"{flask.current_app.config['TITLE']} {flask.has_request_context()}"

    app.add_url_rule("/a", view_func=lambda: title())
    site = make_site(revalidate=60, app=app.wsgi_app, watcher="nobody")
    assert site.visit("/a").text == "Kept Pages False"


def test_it_has_the_app_in_the_background_as_well(make_site: MakeSite, app: flask.Flask, clock: Clock) -> None:
    calls: list[str] = []

    @cached(revalidate=5)
    def title() -> str:
        calls.append(flask.current_app.name)
        return f"{len(calls)}"

    app.add_url_rule("/a", view_func=lambda: title())
    site = make_site({"/a": 0}, app=app.wsgi_app, watcher="nobody")
    assert site.visit("/a").text == "1"
    clock.advance(6)
    assert site.visit("/a").text == "1"
    site.settle()
    assert site.visit("/a").text == "2"
    assert calls == [app.name] * 2


def test_the_app_context_of_a_kept_function_is_torn_down_after_each_call(make_site: MakeSite, app: flask.Flask) -> None:
    torn_down: list[str] = []

    @app.teardown_appcontext
    def tear_down(error: BaseException | None) -> None:
        torn_down.append(threading.current_thread().name)

    @cached
    def number(n: int) -> int:
        return n

    app.add_url_rule("/<int:n>", view_func=lambda n: str(number(n)))
    site = make_site({"/<int:n>": 0}, app=app.wsgi_app, watcher="nobody")
    for n in range(3):
        site.visit(f"/{n}")
    assert torn_down.count("wsgi-isr-data") == 3


def test_sqlalchemy_in_flask_works_as_in_a_view(make_site: MakeSite, app: flask.Flask, tmp_path: Any) -> None:
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import text

    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    database = SQLAlchemy(app)
    with app.app_context():
        database.session.execute(text("CREATE TABLE post (title TEXT)"))
        database.session.execute(text("INSERT INTO post VALUES ('hello')"))
        database.session.commit()

    @cached(tags=["posts"])
    def titles() -> list[str]:
        return [row[0] for row in database.session.execute(text("SELECT title FROM post"))]

    @app.get("/")
    def index() -> str:
        return ",".join(titles())

    @app.post("/add")
    def add() -> str:
        database.session.execute(text("INSERT INTO post VALUES ('more')"))
        database.session.commit()
        return "added"

    site = make_site(revalidate=60, app=app.wsgi_app, watcher="nobody")
    assert site.visit("/").text == "hello"
    site.visit("/add", method="POST")
    assert site.visit("/").text == "hello"
    site.isr.invalidate(tags=["posts"])
    assert site.visit("/").text == "hello,more"
    with app.app_context():
        assert database.engine.pool.checkedout() == 0
        database.engine.dispose()


def test_of_several_apps_a_kept_function_gets_the_one_that_calls_it(make_site: MakeSite, clock: Clock) -> None:
    apps = [flask.Flask(name) for name in ("one", "two")]
    calls: list[str] = []

    @cached(revalidate=5)
    def name(of: str) -> str:
        calls.append(flask.current_app.name)
        return flask.current_app.name

    for each in apps:
        each.add_url_rule("/", view_func=lambda: name(flask.current_app.name))
    both = DispatcherMiddleware(apps[0].wsgi_app, {"/two": apps[1].wsgi_app})
    site = make_site({"/": 0, "/two/": 0}, app=both, watcher="nobody")
    assert (site.visit("/").text, site.visit("/two/").text) == ("one", "two")
    clock.advance(6)
    assert site.visit("/two/").text == "two"
    site.settle()
    assert calls == ["one", "two", "two"]


def test_of_several_apps_the_one_that_has_called_is_that_of_a_render_in_the_background(
    make_site: MakeSite, clock: Clock
) -> None:
    apps = [flask.Flask(name) for name in ("one", "two")]
    calls: list[str] = []

    @cached(revalidate=5)
    def name() -> str:
        calls.append(flask.current_app.name)
        return flask.current_app.name

    apps[1].add_url_rule("/", view_func=name)
    both = DispatcherMiddleware(apps[0].wsgi_app, {"/two": apps[1].wsgi_app})
    store = MemoryStore(clock=clock)
    first, second = (make_site({"/two/": 0}, app=both, watcher="nobody", store=store) for _ in range(2))
    first.visit("/two/")
    clock.advance(6)
    # The second process has only found the value that the first one made.
    assert second.visit("/two/").text == "two"
    second.settle()
    assert calls == ["two", "two"]


def test_of_several_apps_a_renderer_takes_the_one_that_has_called(make_site: MakeSite) -> None:
    apps = [flask.Flask(name) for name in ("one", "two")]

    @cached(revalidate=5)
    def name() -> str:
        return flask.current_app.name

    both = DispatcherMiddleware(apps[0].wsgi_app, {"/two": apps[1].wsgi_app})
    engine = make_site(app=both, watcher="nobody").isr._engine
    with apps[1].app_context():
        task = name._task(engine, (), {})
    renderer = make_site(app=both, watcher="nobody").isr._engine
    assert renderer.run_job(task, Attempt()).status is Status.STORED
    entry = renderer.cache.kept(task)
    assert entry is not None
    assert name._decoded(entry.content) == ("two",)


def test_of_several_apps_a_renderer_that_does_not_have_it_leaves_it_to_the_process_that_has(
    make_site: MakeSite,
) -> None:
    apps = [flask.Flask(name) for name in ("one", "two", "three")]

    @cached(revalidate=5)
    def name() -> str:
        return flask.current_app.name

    mounts = {f"/{app.name}": app.wsgi_app for app in apps}
    engine = make_site(app=DispatcherMiddleware(apps[0].wsgi_app, mounts), watcher="nobody").isr._engine
    with apps[2].app_context():
        task = name._task(engine, (), {})
    del mounts["/three"]
    renderer = make_site(app=DispatcherMiddleware(apps[0].wsgi_app, mounts), watcher="nobody").isr._engine
    assert renderer.run_job(task, Attempt()) == Reply(Status.UNKNOWN)
    assert engine.run_job(task, Attempt()).status is Status.STORED


# Apps beside each other -------------------------------------------------------------------------------------


class Tenants:
    """Two apps of one import name behind one ISR, and a cached function that both call."""

    def __init__(self, make_site: MakeSite, mounted: bool = True) -> None:
        self.apps = [flask.Flask("tenant") for _ in range(2)]
        self.names = ["ACME", "GLOBEX"]
        self.calls: list[str] = []

        @cached(revalidate=60, tags=["menu"])
        def menu() -> str:
            name = str(flask.current_app.config["TENANT"])
            self.calls.append(name)
            return name

        self.menu = menu
        for app, name in zip(self.apps, self.names, strict=True):
            app.config["TENANT"] = name
            app.add_url_rule("/", view_func=menu)
            app.add_url_rule("/refresh", view_func=menu.refresh, endpoint="refresh")
        mounts: Any = {"/1": self.apps[1].wsgi_app} if mounted else Hidden(self.apps[1].wsgi_app)
        self.site = make_site({"/<path:any>": 0}, app=DispatcherMiddleware(self.apps[0].wsgi_app, mounts))

    def texts(self, path: str = "/") -> list[str]:
        return [self.site.visit(f"{mount}{path}").text for mount in ("", "/1")]


class Hidden(dict[str, Any]):
    """Mounted apps that are made at the first request."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self._app = app

    def __bool__(self) -> bool:
        return True

    def __contains__(self, path: object) -> bool:
        return path == "/1"

    def __getitem__(self, path: str) -> Any:
        return self._app


def test_apps_beside_each_other_have_data_of_their_own(make_site: MakeSite) -> None:
    tenants = Tenants(make_site)
    assert [tenants.texts() for _ in range(2)] == [tenants.names] * 2
    assert tenants.calls == tenants.names


@pytest.mark.parametrize("by", ["tag", "key"])
def test_an_invalidation_of_data_reaches_all_apps_that_have_it(make_site: MakeSite, by: str) -> None:
    tenants = Tenants(make_site)
    tenants.texts()
    if by == "tag":
        tenants.site.isr.invalidate(tags=["menu"])
    else:
        tenants.menu.invalidate()
    assert tenants.texts() == tenants.names
    assert tenants.calls == tenants.names * 2


def test_a_refresh_is_that_of_the_app_that_calls_it(make_site: MakeSite) -> None:
    tenants = Tenants(make_site)
    assert tenants.texts("/refresh") == tenants.names
    assert tenants.texts() == tenants.names


def test_data_of_an_app_that_is_not_known_is_made_each_time(make_site: MakeSite) -> None:
    tenants = Tenants(make_site, mounted=False)
    assert [tenants.texts() for _ in range(2)] == [tenants.names] * 2
    assert tenants.calls == ["ACME", "GLOBEX", "GLOBEX"]
    reasons = [(event.label, event.reason) for event in tenants.site.happened(DataServed)]
    assert reasons[1::2] == [("SKIP", "unknown-app")] * 2


def test_without_an_active_app_data_is_that_of_no_app(make_site: MakeSite) -> None:
    tenants = Tenants(make_site)

    @cached(revalidate=60)
    def has_app() -> bool:
        return flask.has_app_context()

    tenants.texts()
    assert has_app() is False
    with tenants.apps[1].app_context():
        assert has_app() is True
    assert has_app() is False


# Threads and contexts ---------------------------------------------------------------------------------------


def test_a_thread_local_of_the_visitor_is_out_of_reach(make_site: MakeSite, origin: Origin) -> None:
    noted = threading.local()

    @cached
    def nav() -> str:
        return f"nav of {getattr(noted, 'user', 'everybody')}"

    def account(environ: Environ) -> bytes:
        noted.user = "alice"
        return nav().encode()

    origin.on("/account", answer(account, ("Cache-Control", "private")))
    origin.on("/side", answer(lambda environ: nav().encode()))
    site = make_site({"/account": 0, "/side": 60})
    assert site.visit("/account").text == "nav of everybody"
    assert site.visit("/side").text == "nav of everybody"


def test_a_context_variable_of_the_visitor_is_out_of_reach(make_site: MakeSite, origin: Origin) -> None:
    user: ContextVar[str] = ContextVar("user", default="everybody")

    @cached
    def nav() -> str:
        return f"nav of {user.get()}"

    def account(environ: Environ) -> bytes:
        user.set("alice")
        return nav().encode()

    origin.on("/account", answer(account))
    site = make_site({"/account": 0})
    assert site.visit("/account").text == "nav of everybody"


def test_the_request_of_bottle_is_out_of_reach(make_site: MakeSite) -> None:
    app = bottle.Bottle()
    app.catchall = False

    @cached
    def nav() -> str:
        return str(bottle.request.get_header("Host"))

    app.route("/account", callback=nav)
    site = make_site({"/account": 0}, app=app, watcher="nobody")
    with pytest.raises(PersonalDataError, match="the request of a visitor"):
        site.visit("/account", host="evil.example")


@pytest.mark.parametrize("known", [False, True], ids=["any app", "Flask"])
def test_kept_functions_that_call_each_other_share_a_thread(
    make_site: MakeSite, app: flask.Flask, known: bool, origin: Origin
) -> None:
    threads: list[int] = []

    @cached
    def inner() -> int:
        threads.append(threading.get_ident())
        return 1

    @cached
    def outer() -> int:
        threads.append(threading.get_ident())
        return inner() + 1

    app.add_url_rule("/a", view_func=lambda: str(outer()))
    origin.on("/a", answer(lambda environ: str(outer()).encode()))
    site = make_site({"/a": 0}, app=app.wsgi_app if known else origin, watcher="nobody")
    assert site.visit("/a").text == "2"
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_a_kept_function_that_calls_itself_with_the_same_arguments_does_not_wait_for_itself(
    make_site: MakeSite, origin: Origin
) -> None:
    depth: list[int] = []

    @cached
    def endless() -> int:
        depth.append(1)
        return len(depth) if len(depth) > 3 else endless()

    origin.on("/a", answer(lambda environ: str(endless()).encode()))
    site = make_site({"/a": 0})
    before = site.clock.now
    assert site.visit("/a").text == "4"
    assert site.clock.now == before


def test_what_a_kept_function_raises_is_what_the_view_gets(make_site: MakeSite, origin: Origin) -> None:
    class Gone(Exception):
        pass

    @cached
    def post() -> str:
        raise Gone("no such post")

    def view(environ: Environ) -> bytes:
        try:
            return post().encode()
        except Gone as error:
            return str(error).encode()

    origin.on("/a", answer(view))
    assert make_site({"/a": 0}).visit("/a").text == "no such post"


def test_a_function_that_needs_what_the_view_holds_is_called_by_the_view_once_its_time_is_over(
    make_site: MakeSite, origin: Origin
) -> None:
    lock = threading.RLock()
    threads: list[threading.Thread] = []

    @cached(revalidate=60, timeout=0.05)
    def title() -> str:
        with lock:
            threads.append(threading.current_thread())
        return "title"

    def view(environ: Environ) -> bytes:
        with lock:
            return f"{title()} {threads == [threading.current_thread()]}".encode()

    origin.on("/", answer(view))
    site = make_site({"/": 0})
    assert site.start_visit("/").result().text == "title True"
    assert [(event.label, event.reason) for event in site.happened(DataServed)] == [("SKIP", "timeout")]


def test_a_function_that_a_module_calls_while_it_is_imported_may_import_that_module(
    make_site: MakeSite, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calls_itself.py").write_text(
        "from wsgi_isr import cached\n"
        "@cached(revalidate=60)\n"
        "def settings() -> dict:\n"
        "    from calls_itself import DEFAULTS\n"
        "    return DEFAULTS\n"
        "DEFAULTS = {'title': 'Kept Pages'}\n"
        "SETTINGS = settings()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    site = make_site()
    importing = threading.Thread(target=importlib.import_module, args=("calls_itself",), daemon=True)
    importing.start()
    importing.join(DEADLINE)
    assert not importing.is_alive()
    assert sys.modules["calls_itself"].SETTINGS == {"title": "Kept Pages"}
    assert [event.label for event in site.happened(DataServed)] == ["MISS"]


def test_without_a_thread_the_function_is_called_and_nothing_is_kept(
    make_site: MakeSite, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    @cached
    def number() -> int:
        calls.append(1)
        return len(calls)

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    origin.on("/a", answer(lambda environ: str(number()).encode()))
    site = make_site({"/a": 0})
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        assert [site.visit("/a").text for _ in range(2)] == ["1", "2"]
    site.clock.advance(60)
    assert [site.visit("/a").text for _ in range(2)] == ["3", "3"]


def test_many_visitors_have_their_data_made_at_the_same_time(make_site: MakeSite, origin: Origin) -> None:
    everybody = threading.Barrier(8)

    @cached
    def number(n: str) -> str:
        everybody.wait(DEADLINE)
        return n

    origin_paths = [f"/{n}" for n in range(8)]
    for path in origin_paths:
        origin.on(path, answer(lambda environ: number(environ["PATH_INFO"]).encode()))
    site = make_site(app=origin)
    visits = [site.start_visit(path) for path in origin_paths]
    assert [visit.result().text for visit in visits] == origin_paths


# Django -----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_languages() -> Iterator[None]:
    """Let Django choose a language for each visitor."""
    configure()
    middleware = ["django.middleware.locale.LocaleMiddleware"]
    with override_settings(MIDDLEWARE=middleware, USE_I18N=True, LANGUAGES=[("en", "English"), ("de", "German")]):
        yield


def make_django(make_site: MakeSite, view: Callable[[], str]) -> Site:
    handler = get_wsgi_application()

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        translation.activate(environ.get("HTTP_ACCEPT_LANGUAGE", "en"))
        try:
            return answer(view().encode())(environ, start_response)  # type: ignore[return-value]
        finally:
            translation.deactivate()

    app.application = handler  # type: ignore[attr-defined]
    return make_site({"/": 0}, app=app, watcher="nobody", store=MemoryStore())


@pytest.mark.parametrize("look", [translation.get_language, lambda: translation.gettext("Monday")])
def test_a_kept_function_that_looks_at_the_visitors_language_fails(
    make_site: MakeSite, in_languages: None, look: Callable[[], str]
) -> None:
    @cached
    def greeting() -> str:
        return str(look())

    site = make_django(make_site, greeting)
    with pytest.raises(PersonalDataError, match=r"translation\.override"):
        site.visit("/", headers={"Accept-Language": "de"})


def test_a_kept_function_is_given_the_language_as_an_argument(make_site: MakeSite, in_languages: None) -> None:
    @cached
    def greeting(language: str) -> str:
        with translation.override(language):
            return translation.gettext("Monday")

    site = make_django(make_site, lambda: greeting(translation.get_language()))
    seen = [site.visit("/", headers={"Accept-Language": name}).text for name in ("de", "en", "de")]
    assert seen == ["Montag", "Monday", "Montag"]


def test_without_a_choice_of_language_that_of_the_settings_is_everybodys(make_site: MakeSite) -> None:
    configure()

    @cached
    def greeting() -> str:
        return translation.gettext("Monday")

    assert make_django(make_site, greeting).visit("/").text == "Monday"


class _Connection:
    """Django's book-keeping of a connection to a database."""

    def __init__(self, max_age: int | None, is_in_transaction: bool = False) -> None:
        self.settings_dict = {"CONN_MAX_AGE": max_age}
        self.in_atomic_block = is_in_transaction
        self.close_at: float | None = -1.0
        self.checked: list[float | None] = []
        self.closed_by = ""

    def close_if_unusable_or_obsolete(self) -> None:
        self.checked.append(self.close_at)

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[_Connection]:
    """Return the connections of the thread."""
    configure()
    there: list[_Connection] = []
    monkeypatch.setattr("django.db.connections.all", lambda initialized_only=False: there)
    return there


def test_connections_of_django_are_checked_before_and_after_each_kept_function(
    make_site: MakeSite, connections: list[_Connection]
) -> None:
    aged, unlimited = _Connection(600), _Connection(None)
    connections += [aged, unlimited]
    make_django(make_site, cached(lambda: "1")).visit("/")
    assert aged.checked == unlimited.checked == [-1.0, -1.0]


def test_a_connection_of_django_is_not_closed_in_a_transaction_of_a_function_that_calls_another(
    make_site: MakeSite, connections: list[_Connection]
) -> None:
    connections.append(_Connection(600, is_in_transaction=True))
    make_django(make_site, cached(lambda: "1")).visit("/")
    assert connections[0].checked == []


def test_kept_functions_that_follow_each_other_share_a_connection_of_django(
    make_site: MakeSite, connections: list[_Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr("wsgi_isr.data.isolation.IDLE_TIMEOUT", 0.05)
    monkeypatch.setattr("django.db.connections.close_all", lambda: [connections[0].close(), ended.set()])
    # With Django's default settings each request has a connection of its own.
    connections.append(_Connection(0))
    numbers = iter("123")

    @cached
    def number(n: str) -> str:
        return n

    site = make_django(make_site, lambda: number(next(numbers)) + number(next(numbers)))
    assert site.visit("/").text == "12"
    assert set(connections[0].checked) == {None}
    assert len(connections[0].checked) == 4
    assert ended.wait(DEADLINE)
    assert connections[0].closed_by == "wsgi-isr-data"


def test_kept_functions_of_flask_have_a_thread_each(make_site: MakeSite, app: flask.Flask) -> None:
    held = threading.local()

    @cached
    def was_here(n: int) -> bool:
        before = hasattr(held, "session")
        held.session = "of SQLAlchemy, with a transaction that nobody has ended"
        return before

    app.add_url_rule("/", view_func=lambda: str([was_here(n) for n in range(3)]))
    assert make_site({"/": 0}, app=app.wsgi_app, watcher="nobody").visit("/").text == "[False, False, False]"


def test_what_is_inside_an_app_may_be_a_proxy_that_can_be_used_in_a_request_only(make_site: MakeSite) -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("Working outside of request context.")

        def __call__(self) -> None:
            """Do nothing: the object may be taken for an app."""

    current_user = Proxy()

    def app(environ: Environ, start_response: Any) -> Any:
        assert current_user is not None
        return answer(cached(lambda: "1")().encode())(environ, start_response)

    assert make_site({"/": 0}, app=app, watcher="nobody").visit("/").text == "1"
