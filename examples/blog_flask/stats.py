"""The numbers of ``/stats``, counted anew from the database at each render."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter

WORDS_PER_MINUTE = 230  # of an adult who reads English silently (Brysbaert 2019: 238)

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")

# Frequent words without information about a text's topic.
_COMMON_WORDS = """
a about after again all an and another any anybody are as ask asks at away back be because been
before between both but by can cannot come comes could did do does done each else enough even every
everybody first for from get gets give given go had has have he her here him his how i if in into is
it it's its itself just know known knows last less let like little long look made make makes many
may me more most much must my need needs never no nobody none not nothing now of off old on once one
ones only or other others our out over own part rather right same say says second see she should
since so some somebody something still take takes ten than that the their them themselves then there
these they thing things think this those three through to too two under until up us use was way we
well were what whatever when where which while who whoever whom why will with without would yes you
your
"""
_COMMON = frozenset(_COMMON_WORDS.split())


def compute(connection: sqlite3.Connection) -> dict[str, object]:
    """Count everything.

    :returns: ``totals``, ``authors``, ``longest`` (posts by words), ``discussed`` (posts by comments),
        ``words`` (the most frequent ones, without common words) and ``years`` (posts in each).
    """
    posts = connection.execute("SELECT slug, title, body, author_id, published FROM post").fetchall()
    lengths = {post["slug"]: len(_words(post["body"])) for post in posts}
    vocabulary = Counter(word for post in posts for word in _words(post["body"]))
    counts = {table: connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("post", "comment")}
    words = sum(lengths.values())
    return {
        "totals": {
            "posts": counts["post"],
            "comments": counts["comment"],
            "words": words,
            "different words": len(vocabulary),
            "minutes to read": round(words / WORDS_PER_MINUTE),
        },
        "authors": _authors(connection, posts, lengths),
        "longest": sorted((_bar(post["title"], lengths[post["slug"]], post["slug"]) for post in posts), key=_tallest)[
            :5
        ],
        "discussed": connection.execute(
            "SELECT post.title AS label, post.slug, COUNT(*) AS count"
            " FROM comment JOIN post ON post.id = comment.post_id"
            " GROUP BY post.id ORDER BY count DESC, label LIMIT 5"
        ).fetchall(),
        "words": sorted(
            (_bar(word, n) for word, n in vocabulary.items() if len(word) > 2 and word not in _COMMON),
            key=_tallest,
        )[:12],
        "years": [_bar(*year) for year in sorted(Counter(post["published"][:4] for post in posts).items())],
    }


def _bar(label: str, count: int, slug: str = "") -> dict[str, str | int]:
    return {"label": label, "count": count, "slug": slug}


def _tallest(bar: dict[str, str | int]) -> tuple[int, str]:
    return -int(bar["count"]), str(bar["label"])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _authors(
    connection: sqlite3.Connection, posts: list[sqlite3.Row], lengths: dict[str, int]
) -> list[dict[str, object]]:
    rows = connection.execute(
        "SELECT user.id, user.name, COUNT(DISTINCT post.id) AS posts, COUNT(comment.id) AS comments"
        " FROM user JOIN post ON post.author_id = user.id LEFT JOIN comment ON comment.post_id = post.id"
        " GROUP BY user.id ORDER BY posts DESC, user.name"
    ).fetchall()
    words: Counter[int] = Counter()
    for post in posts:
        words[post["author_id"]] += lengths[post["slug"]]
    return [{**row, "words": words[row["id"]]} for row in rows]
