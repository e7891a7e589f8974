"""The public pages."""

from __future__ import annotations

import sqlite3
import time

from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from . import accounts, db, stats, writing

blueprint = Blueprint("pages", __name__)

_LIST = """
    SELECT post.*, user.name AS author,
           (SELECT COUNT(*) FROM comment WHERE comment.post_id = post.id) AS comments,
           (SELECT group_concat(tag, ' ') FROM post_tag WHERE post_tag.post_id = post.id) AS tags
    FROM post JOIN user ON user.id = post.author_id
"""
_NEWEST_FIRST = " ORDER BY post.published DESC, post.id DESC"

NAME_LENGTH = 60
COMMENT_LENGTH = 4000


@blueprint.get("/")
def index() -> str:
    posts = db.get().execute(_LIST + _NEWEST_FIRST).fetchall()
    tags = (
        db.get().execute("SELECT tag, COUNT(*) AS posts FROM post_tag GROUP BY tag ORDER BY posts DESC, tag").fetchall()
    )
    return render_template("index.html", posts=posts, tags=tags)


@blueprint.get("/tags/<tag>")
def tagged(tag: str) -> str:
    where = " WHERE post.id IN (SELECT post_id FROM post_tag WHERE tag = ?)"
    posts = db.get().execute(_LIST + where + _NEWEST_FIRST, (tag,)).fetchall()
    if not posts:
        abort(404, "No post has this tag.")
    return render_template("tag.html", tag=tag, posts=posts)


@blueprint.get("/posts/<slug>")
def post(slug: str) -> str:
    return _post_page(_find(slug))


@blueprint.post("/posts/<slug>/comments")
def comment(slug: str) -> Response | tuple[str, int]:
    post = _find(slug)
    user = accounts.current_user()
    if user is not None:
        # Only logged-in users need protection from forged forms: a forged anonymous comment abuses no account.
        # A token for each stranger would need a cookie on every page.
        accounts.check_csrf()
    name = user["name"] if user is not None else request.form.get("name", "").strip()
    body = request.form.get("body", "").replace("\r\n", "\n").strip()
    problems = []
    if not 1 <= len(name) <= NAME_LENGTH:
        problems.append(f"Please give a name of at most {NAME_LENGTH} characters.")
    if not 1 <= len(body) <= COMMENT_LENGTH:
        problems.append(f"Please write a comment of at most {COMMENT_LENGTH:,} characters.")
    if problems:
        return _post_page(post, problems=problems, typed={"name": name, "body": body}), 400
    comment_id = writing.comment(db.get(), post, name, body)
    # The query makes it another URL than the cached page, so the writer sees the comment at once.
    return redirect(url_for(".post", slug=slug, comment=comment_id, _anchor=f"comment-{comment_id}"), 303)


@blueprint.get("/about")
def about() -> str:
    people = (
        db.get()
        .execute(
            "SELECT user.*, COUNT(post.id) AS posts FROM user LEFT JOIN post ON post.author_id = user.id"
            " GROUP BY user.id ORDER BY posts DESC, user.name"
        )
        .fetchall()
    )
    return render_template("about.html", people=people)


@blueprint.get("/stats")
def statistics() -> str:
    started = time.perf_counter()
    numbers = stats.compute(db.get())
    # Counting a dozen posts takes no time; a real blog with ten years of posts would take this long.
    time.sleep(current_app.config["SLOW"])
    return render_template("stats.html", **numbers, took=time.perf_counter() - started)


def _find(slug: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.get().execute(_LIST + " WHERE post.slug = ?", (slug,)).fetchone()
    if row is None:
        abort(404, "There is no such post.")
    return row


def _post_page(post: sqlite3.Row, problems: list[str] | None = None, typed: dict[str, str] | None = None) -> str:
    comments = (
        db.get().execute("SELECT * FROM comment WHERE post_id = ? ORDER BY written, id", (post["id"],)).fetchall()
    )
    newer = _neighbour("post.published > ? ORDER BY post.published", post)
    older = _neighbour("post.published < ? ORDER BY post.published DESC", post)
    return render_template(
        "post.html",
        post=post,
        comments=comments,
        newer=newer,
        older=older,
        problems=problems or [],
        typed=typed or {},
        just_written=request.args.get("comment", type=int),
        lengths={"name": NAME_LENGTH, "comment": COMMENT_LENGTH},
    )


def _neighbour(condition: str, post: sqlite3.Row) -> sqlite3.Row | None:
    query = f"SELECT slug, title FROM post WHERE {condition} LIMIT 1"
    row: sqlite3.Row | None = db.get().execute(query, (post["published"],)).fetchone()
    return row
