"""The news site of the demo: a WSGI app with werkzeug alone, and the middleware around it.

The names of its environment variables do not begin with ``WSGI_ISR_``, the prefix for options of the middleware.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from itsdangerous import BadSignature, Signer
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.routing import Map
from werkzeug.routing import Rule as Route
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from ...config.rules import Rule
from ...middleware.isr import ISR

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

#: The variable with the directory of the store, the counters of renders and the switch of the backend.
FOLDER = "ISR_DEMO_FOLDER"
#: The variable with the key that signs the cookie of a login.
SECRET = "ISR_DEMO_SECRET"
#: The variable with the id of the parent process. The server ends when the parent ends.
PARENT = "ISR_DEMO_PARENT"
#: The variable with the path of a page that is never cached. Tests break the story with it.
PRIVATE = "ISR_DEMO_PRIVATE"

#: The ``revalidate`` of the front page and of the weather, in seconds.
REVALIDATE = 2
#: The time that the backend takes for each page, in seconds.
SLOW = 0.25
RULES = {"/": REVALIDATE, "/weather": REVALIDATE, "/news/<slug>": Rule(revalidate=3600, tags=["news", "news:{slug}"])}

COOKIE = "demo_session"
LONGEST_NAME = 30

ARTICLES = {
    "harbour": ("The harbour opens a second pier", "Ferries leave every ten minutes from today."),
    "library": ("The library lends tools", "Members borrow drills, saws and ladders for a week."),
    "night-train": ("A night train to the coast", "It leaves at eleven and arrives for breakfast."),
}
_ASSETS = {"demo.js": "text/javascript", "style.css": "text/css"}
_DOWN = "The backend is down, so this page cannot be rendered."


class Backend:
    """The source of all content. It is slow, counts the renders of each page, and fails on demand.

    All processes of the server share its state, which is in files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._switch = folder / "backend-fails"

    @property
    def fails(self) -> bool:
        """Return whether the backend is down."""
        return self._switch.exists()

    def fail(self) -> None:
        """Refuse all requests from now on."""
        self._switch.touch()

    def heal(self) -> None:
        """Accept requests again."""
        self._switch.unlink(missing_ok=True)

    def render(self, path: str) -> int:
        """Render the page at ``path``; return the number of the render, from 1."""
        time.sleep(SLOW)
        # O_APPEND is atomic: the offset after the byte is the number of bytes, and of renders, so far.
        file = os.open(self._folder / f"renders-{quote(path, safe='')}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, b".")
            return os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)


class Page(NamedTuple):
    """The title and content of a page, without the template of all pages."""

    title: str
    content: str


class Site:
    """The app. A server calls :attr:`isr`, the app behind the cache.

    :param folder: an existing directory that the process can write to.
    :param secret: the key that signs the cookie of a login.
    :param private: the path of a page that is never cached; may be empty.
    """

    def __init__(self, folder: Path, secret: str, private: str = "") -> None:
        self._backend = Backend(folder)
        self._signer = Signer(secret)
        self._private = private
        self._frame = Template(_asset("page.html"))
        self._views: dict[str, Callable[..., Page]] = {"front": _front, "weather": _weather, "article": _article}
        self._actions: dict[str, Callable[[Request], Response]] = {
            "ready": lambda request: Response("ready"),
            "invalidate": self._invalidate,
            "fail": self._fail,
            "heal": self._heal,
            "login": self._login,
            "logout": self._logout,
        }
        post = ["POST"]
        self._routes = Map(
            [
                Route("/", endpoint="front"),
                Route("/weather", endpoint="weather"),
                Route("/news/<slug>", endpoint="article"),
                Route("/demo/ready", endpoint="ready"),
                *(Route(f"/demo/{name}", endpoint=name, methods=post) for name in ("invalidate", "fail", "heal")),
                *(Route(f"/{name}", endpoint=name, methods=post) for name in ("login", "logout")),
                Route("/demo/<name>", endpoint="asset", methods=["GET"]),
            ]
        )
        self.isr = ISR(
            self.answer,
            RULES,
            import_name="wsgi_isr.commands.demo_site",
            store=f"sqlite:///{quote(str(folder / 'store.db'))}",
            journal=False,
            development="cache",
            release="demo",
            adopt_release=None,
            coherence=0.0,  # both workers see an invalidation at once, not after 0.1 s
        )

    def answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        request = Request(environ)
        try:
            endpoint, values = self._routes.bind_to_environ(environ).match()
            return self._respond(request, endpoint, values)(environ, start_response)
        except HTTPException as error:
            return error(environ, start_response)

    def _respond(self, request: Request, endpoint: str, values: Mapping[str, Any]) -> Response:
        # Browsers send Sec-Fetch-Site. The forms of another site must neither log in nor press the buttons.
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            return Response("The form belongs to another site.\n", 403)
        if endpoint == "asset":
            return _static(values["name"])
        if (action := self._actions.get(endpoint)) is not None:
            return action(request)
        return self._render(request, self._views[endpoint](**values))

    def _render(self, request: Request, page: Page) -> Response:
        if self._backend.fails:
            time.sleep(SLOW)
            return Response(f"{_DOWN}\n", 500)
        visitor = self._visitor(request)
        text = self._frame.substitute(
            title=escape(page.title),
            content=page.content,
            greeting=f"Your own page, {escape(visitor)}" if visitor else "The page for everybody",
            session=_LOGOUT if visitor else _LOGIN,
            number=self._backend.render(request.path),
            stamp=datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )
        response = Response(text, content_type="text/html; charset=utf-8", headers={"Vary": "Cookie"})
        if request.path == self._private:
            response.headers["Cache-Control"] = "private"
        return response

    def _visitor(self, request: Request) -> str:
        try:
            return self._signer.unsign(request.cookies.get(COOKIE, "")).decode()
        except BadSignature:
            return ""

    def _login(self, request: Request) -> Response:
        name = request.form.get("name", "").strip()[:LONGEST_NAME] or "visitor"
        response = redirect("/", 303)
        response.set_cookie(COOKIE, self._signer.sign(name).decode(), httponly=True, samesite="Lax")
        return response

    def _logout(self, request: Request) -> Response:
        response = redirect("/", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
        return response

    def _invalidate(self, request: Request) -> Response:
        path = request.form.get("path", "/")
        if not path.startswith("/") or "?" in path or "#" in path:
            return Response(f"path={path!r} is not a path (write /news/harbour)\n", 400)
        receipt = self.isr.invalidate(paths=[path])
        return Response(f"Invalidated: {', '.join(receipt.tags)}\n")

    def _fail(self, request: Request) -> Response:
        self._backend.fail()
        return Response("The backend fails from now on. Invalidate this page, or wait until it is stale.\n")

    def _heal(self, request: Request) -> Response:
        self._backend.heal()
        return Response("The backend works again. After a back-off, a failed render is repeated.\n")


def create() -> ISR:
    """Return the site behind its cache, with the settings of the environment. Each process of a server calls this."""
    return Site(Path(os.environ[FOLDER]), os.environ[SECRET], os.environ.get(PRIVATE, "")).isr


def _front() -> Page:
    items = "".join(
        f'<li><a href="/news/{slug}">{escape(title)}</a><p>{escape(text)}</p></li>'
        for slug, (title, text) in ARTICLES.items()
    )
    return Page(
        "News of today", f'<ul class="news">{items}</ul><p>This page is rendered anew after {REVALIDATE} s.</p>'
    )


def _weather() -> Page:
    text = f"Sunny, 21 degrees. This page is rendered anew after {REVALIDATE} s. Make the backend fail, then reload."
    return Page("The weather", f"<p>{text}</p>")


def _article(slug: str) -> Page:
    if slug not in ARTICLES:
        raise NotFound
    title, text = ARTICLES[slug]
    return Page(
        title, f"<p>{escape(text)}</p><p>This page is rendered anew after an hour, or when it is invalidated.</p>"
    )


_LOGIN = (
    '<form method="post" action="/login"><input name="name" placeholder="Your name" required '
    f'maxlength="{LONGEST_NAME}"><button>Log in</button></form>'
)
_LOGOUT = '<form method="post" action="/logout"><button>Log out</button></form>'


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _static(name: str) -> Response:
    if name not in _ASSETS:
        raise NotFound
    return Response(_asset(name), content_type=f"{_ASSETS[name]}; charset=utf-8")
