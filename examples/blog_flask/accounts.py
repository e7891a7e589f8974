"""Accounts: log in, log out, and the page for the administrator alone.

Every page of the blog reads the session to show "Log in" or a name, so Flask adds ``Vary: Cookie`` to each. Only the
pages here *write* to it: an anonymous reader gets no cookie.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3

from flask import (
    Blueprint,
    abort,
    flash,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.security import check_password_hash
from werkzeug.wrappers import Response

from . import db, text, writing

blueprint = Blueprint("accounts", __name__)


def current_user() -> sqlite3.Row | None:
    """Return the row of the logged-in user of this request; None for anonymous readers."""
    if "user" not in g:
        user_id = session.get("user_id")
        g.user = user_id and db.get().execute("SELECT * FROM user WHERE id = ?", (user_id,)).fetchone()
    user: sqlite3.Row | None = g.user
    return user


def csrf_token() -> str:
    """Return the secret that a form of this session must send back. It creates a session: not for public pages."""
    token: str = session.setdefault("csrf", secrets.token_urlsafe(24))
    return token


def check_csrf() -> None:
    """Refuse a form that another site has sent in the name of the user."""
    expected = session.get("csrf", "")
    if not expected or not hmac.compare_digest(expected.encode(), request.form.get("csrf", "").encode()):
        abort(400, "This form is too old, or it was not ours. Please go back and load the page again.")


def for_templates() -> dict[str, object]:
    """Return the variables about the reader for all templates."""
    return {"current_user": current_user, "csrf_token": csrf_token}


@blueprint.get("/login")
def login() -> str | Response:
    if current_user() is not None:
        return redirect(_safe(request.args.get("next", "")), 303)
    return render_template("login.html", next=request.args.get("next", ""))


@blueprint.post("/login")
def log_in() -> Response | tuple[str, int]:
    check_csrf()
    login = request.form.get("login", "")
    row = db.get().execute("SELECT * FROM user WHERE login = ?", (login,)).fetchone()
    stored = row["password_hash"] if row is not None else None
    if stored is None or not check_password_hash(stored, request.form.get("password", "")):
        problem = "There is no account with this name and password."
        return render_template("login.html", next=request.form.get("next", ""), login=login, problem=problem), 403
    session.clear()  # drop the session from before the login, which is not trusted
    session["user_id"] = row["id"]
    csrf_token()
    return redirect(_safe(request.form.get("next", "")), 303)


@blueprint.post("/logout")
def logout() -> Response:
    if current_user() is not None:
        check_csrf()
        session.clear()
    return redirect(url_for("pages.index"), 303)


@blueprint.get("/admin")
def admin() -> str | Response:
    if current_user() is None:
        return redirect(url_for(".login", next=url_for(".admin")), 302)
    _admins_only()
    return _admin_page()


@blueprint.post("/admin/posts")
def new_post() -> Response | tuple[str, int]:
    user = _admins_only()
    check_csrf()
    typed = {name: request.form.get(name, "").strip() for name in ("title", "summary", "tags", "body")}
    slug = text.slugify(typed["title"])
    tags = {text.slugify(tag) for tag in typed["tags"].split(",")} - {""}
    problems = []
    if not slug:
        problems.append("The title needs at least one letter or digit from a to z, 0 to 9.")
    if not typed["summary"] or not typed["body"]:
        problems.append("The summary and the text must not be empty.")
    if not problems and not writing.publish(
        db.get(), user["id"], slug, tags, typed["title"], typed["summary"], typed["body"]
    ):
        problems.append("There is a post with nearly the same title already.")
    if problems:
        return _admin_page(problems, typed), 400
    flash("Your post is published.")
    return redirect(url_for("pages.post", slug=slug), 303)


def _admins_only() -> sqlite3.Row:
    user = current_user()
    if user is None or not user["is_admin"]:
        abort(403, "This page is for the administrator.")
    return user


def _admin_page(problems: list[str] | None = None, typed: dict[str, str] | None = None) -> str:
    posts = (
        db.get()
        .execute(
            "SELECT post.slug, post.title, post.published, COUNT(comment.id) AS comments"
            " FROM post LEFT JOIN comment ON comment.post_id = post.id"
            " GROUP BY post.id ORDER BY post.published DESC"
        )
        .fetchall()
    )
    return render_template("admin.html", posts=posts, problems=problems or [], typed=typed or {})


def _safe(target: str) -> str:
    """Return the page after the login: one of this site, whatever the form asks for."""
    ours = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if ours and target.isprintable() else url_for("pages.index")
