"""Convert plain text to HTML, as much as a post needs: paragraphs, `code` and indented listings."""

from __future__ import annotations

import re
import textwrap
from itertools import groupby

from markupsafe import Markup, escape

_CODE = re.compile(r"`([^`]+)`")


def paragraphs(text: str) -> Markup:
    """Render blocks that are separated by empty lines. Everything is escaped, so any text is safe."""
    blocks = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    # Adjacent listings are one, with empty lines in it.
    groups = ((is_listing, list(group)) for is_listing, group in groupby(blocks, _is_listing))
    return Markup("\n").join(
        _listing("\n\n".join(group)) if is_listing else Markup("\n").join(map(_paragraph, group))
        for is_listing, group in groups
    )


def _is_listing(block: str) -> bool:
    return all(line.startswith("    ") for line in block.splitlines())


def _listing(block: str) -> Markup:
    return Markup('<pre tabindex="0"><code>%s</code></pre>') % textwrap.dedent(block)


def _paragraph(block: str) -> Markup:
    marked = _CODE.sub(r"<code>\1</code>", str(escape(block)))
    return Markup("<p>%s</p>") % Markup(marked)


def slugify(title: str) -> str:
    """Return the title for a URL: lower-case letters and digits, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", title.lower()))[:80].strip("-")


def plural(count: int, one: str, many: str = "") -> str:
    """Return ``1 comment``, ``2 comments``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
