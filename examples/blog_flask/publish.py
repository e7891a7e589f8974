"""``python -m examples.blog_flask.publish``: an admin job, run by cron or by hand beside the server.

It publishes a post in the database and then invalidates the pages that show it, in all processes that cache them.
It needs the same ``BLOG_DB`` and ``WSGI_ISR_STORE`` as the server, from the environment.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path

from wsgi_isr import InvalidationError, invalidate

from . import db, text, writing
from .caching import pages_with


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    :returns: 0 done; 1 not published, or published but not every copy could be invalidated.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.blog_flask.publish", description=__doc__)
    parser.add_argument("title")
    parser.add_argument("--summary", default="Published by a job.")
    parser.add_argument("--tags", default="", help="separated by commas")
    parser.add_argument("--author", default="admin", help="a login name")
    parser.add_argument("--body", type=Path, help="a file; standard input by default")
    options = parser.parse_args(arguments)

    path = Path(os.environ.get("BLOG_DB", ".blog/blog.sqlite3"))
    store = os.environ.get("WSGI_ISR_STORE", "sqlite:///.wsgi_isr/store.db")
    slug = text.slugify(options.title)
    tags = {text.slugify(tag) for tag in options.tags.split(",")} - {""}
    if not slug:
        parser.error("the title needs at least one letter or digit")
    if not path.exists():
        print(f"There is no blog at {path}: set BLOG_DB to the database of the server.", file=sys.stderr)
        return 1
    with closing(db.connect(path)) as connection:
        author = connection.execute("SELECT id FROM user WHERE login = ?", (options.author,)).fetchone()
        if author is None:
            print(f"There is no account {options.author!r}.", file=sys.stderr)
            return 1
        body = options.body.read_text("utf-8") if options.body else sys.stdin.read()
        if not writing.publish(connection, author["id"], slug, tags, options.title, options.summary, body):
            print(f"There is a post {slug!r} already.", file=sys.stderr)
            return 1
    # The data is committed: from here on no visitor may get the lists without it.
    try:
        receipt = invalidate(tags=pages_with(slug), store=store)
        receipt.raise_for_pending()
    except InvalidationError as error:
        print(f"Published /posts/{slug}, but: {error}", file=sys.stderr)
        return 1
    print(f"Published /posts/{slug}; invalidated {', '.join(receipt.tags)} in {receipt.seconds * 1000:.0f} ms.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
