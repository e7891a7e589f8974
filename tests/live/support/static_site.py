"""A small site of 120 pages for the tests of ``wsgi-isr prerender``: Flask, with links, assets and redirects.

``SITE_RENDERS`` names a file that gets a line, the path, at the start of each render. ``SITE_SLOW``: seconds that each
render takes.
"""

from __future__ import annotations

import os
import time

from flask import Flask, Response, redirect, render_template_string, request

from wsgi_isr import ISR, Rule

POSTS = 110
PAGES = 1 + 8 + POSTS + 1  # home, lists, posts, about

app = Flask(__name__)

LAYOUT = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{{ title }}</title><link rel="stylesheet" href="/style.css?v=3"></head>
<body>{{ body|safe }}</body>
</html>
"""


def page(title: str, body: str) -> str:
    """Render a page; its render is counted."""
    descriptor = os.open(os.environ["SITE_RENDERS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{request.path}\n".encode())
    os.close(descriptor)
    time.sleep(float(os.environ.get("SITE_SLOW", "0")))
    return render_template_string(LAYOUT, title=title, body=body)


@app.get("/")
def home() -> str:
    """Link to the first list only."""
    return page("Home", '<a href="/posts/p/1">posts</a> <a href="/über uns">about</a> <a href="/old">old</a>')


@app.get("/posts/p/<int:number>")
def posts(number: int) -> str:
    """Render links that are relative to the page."""
    links = "".join(f'<a href="../{post}">{post}</a>' for post in range(number, POSTS + 1, 8))
    return page(f"List {number}", links + (f'<link rel="next" href="{number + 1}">' if number < 8 else ""))


@app.get("/posts/<int:number>")
def post(number: int) -> str:
    """Render one post."""
    return page(f"Post {number}", f'<h1>Post {number} ü</h1><img src="../pixel.png"><a href="p/1">all</a>')


@app.get("/über uns")
def about() -> str:
    """Render a page whose path is not ASCII."""
    return page("About", "<p>about")


@app.get("/old")
def old() -> Response:
    """Redirect permanently."""
    return redirect("/posts/p/1", 308)  # type: ignore[return-value]


@app.get("/style.css")
def style() -> Response:
    """Return a style sheet, which a rule keeps out of the cache."""
    return Response("body { background: url(pixel.png) }", content_type="text/css")


@app.get("/pixel.png")
def pixel() -> Response:
    """Return a picture's header without a picture."""
    return Response(bytes(range(256)), content_type="image/png")


rules = {
    "/": Rule(paths=["/"]),
    "/posts/<int:number>": Rule(paths=lambda: [{"number": number} for number in range(1, POSTS + 1)]),
    "/posts/p/<int:number>": Rule(paths=[f"/posts/p/{number}" for number in range(1, 9)]),
    "/über uns": Rule(paths=["/über uns"]),
    "/style.css": 0,
}
app.wsgi_app = ISR(app.wsgi_app, rules, revalidate=3600)  # type: ignore[method-assign]
