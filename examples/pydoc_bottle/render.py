"""The documentation of one module, as pydoc writes it, in modern HTML.

pydoc's own pages are tables and named anchors, and differ from one version to the next. pydoc has a hook for most
pieces, which :class:`_Writer` overrides. :class:`_Tidy` corrects the output that has no hook.
"""

from __future__ import annotations

import pydoc
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from types import ModuleType
from typing import Any, NamedTuple

from . import catalogue, values


class Section(NamedTuple):
    """``entries``: the definitions in it, as (id, name)."""

    anchor: str
    title: str
    html: str
    entries: list[tuple[str, str]]


class Documentation(NamedTuple):
    """All fields are HTML; ``lead`` is the first line of ``text``, where that is a summary."""

    lead: str
    text: str
    sections: list[Section]


def document(module: ModuleType) -> Documentation:
    """Render a module: the same HTML in every process, on every day."""
    writer = _Writer(module)
    text = re.sub(r"^<p>(?:<span[^>]*>|<tt>)?|(?:</span>|</tt>)?</p>\n$", "", writer.document(module))
    lead, text = _split(text)
    ids = {name for _, html in writer.sections for name in re.findall(r'<a name="([^"]*)"', html)}
    taken: set[str] = set()

    def tidy(html: str) -> str:
        return _Tidy(module.__name__, ids, taken).clean(html)

    lead, text = tidy(lead), tidy(text)
    sections = []
    for title, html in writer.sections:
        html = tidy(html)
        defined = re.findall(r'<a id="([^"]*)"', html)
        # Classes have plain ids, functions begin with a hyphen; a hyphen inside marks a method.
        entries = [(name, name.removeprefix("-")) for name in defined if "-" not in name.removeprefix("-")]
        sections.append(Section(f"all-{title.lower().replace(' ', '-')}", title, html, entries))
    return Documentation(lead, text, sections)


class _Writer(pydoc.HTMLDoc):
    """pydoc's HTML, piece by piece; sections are collected instead of written."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module.__name__
        self.sections: list[tuple[str, str]] = []

    # Text and values

    def escape(self, text: str) -> str:
        # A signature arrives here as a whole, with the values of its defaults.
        return escape(values.scrub(text), quote=False)

    def preformat(self, text: str) -> str:
        return self.escape(text.expandtabs())  # the style sheet preserves white space

    def repr(self, value: Any) -> str:
        return self.escape(values.spell(value))

    def docother(self, value: Any, name: str | None = None, mod: Any = None, *ignored: Any) -> str:
        if name is None:
            return self.repr(value)
        if name in values.NOT_ALWAYS_THERE:
            return ""
        text = values.HIDDEN if values.is_hidden(self._module, name) else self.repr(value)
        return f"<strong>{escape(name)}</strong> = {text}"

    def grey(self, text: str) -> str:
        return f"<em>{text}</em>"

    # Sections

    def heading(self, *ignored: Any) -> str:
        return ""  # the page has its own heading, and no link to a file

    def bigsection(self, title: str, *args: Any) -> str:
        *_colours, contents = args
        if title == "Data":
            lines = filter(None, contents.split("<br>\n"))
            contents = "".join(f'<div class="entry"><div class="signature">{line}</div></div>' for line in lines)
        elif title in ("Author", "Credits"):
            contents = f'<div class="doc">{contents}</div>'
        if contents:
            self.sections.append((title, contents))
        return ""

    def section(self, title: str, *args: Any) -> str:
        """Render a class: pydoc calls this for classes alone."""
        *_colours, contents, _width, prelude = args
        contents = contents.replace("<dl><dt></dl>\n\n", "")  # left over from docother()
        first, *groups = contents.split("<hr>\n")
        if not first.startswith("<dl><dt>Method resolution order:"):
            first, groups = "", [first, *groups]
        order = re.findall(r"<dd>(.*?)</dd>", first)
        return "".join(
            (
                f'<section class="class"><h3>{title.replace("</a>(", "</a><wbr>(", 1)}</h3>',
                _doc_of_class(re.sub(r"^<span[^>]*>|^<tt>|<br>&nbsp;(?:</span>|</tt>)$", "", prelude)),
                f'<p class="order">Resolution order: {" → ".join(order)}</p>' if order else "",
                *map(_group, groups),
                "</section>\n",
            )
        )

    def multicolumn(self, items: Any, link: Callable[[Any], str], *ignored: Any) -> str:
        return '<ul class="columns">' + "".join(f"<li>{item}</li>" for item in map(link, items) if item) + "</ul>"

    def modpkglink(self, modpkginfo: Any) -> str:
        name, path, is_package, _shadowed = modpkginfo
        full = f"{path}.{name}"
        if catalogue.find(full) is None:
            return ""
        return f'<a href="{full}.html">{name}</a>' + (" <em>package</em>" if is_package else "")

    def formattree(self, tree: Any, modname: str, parent: Any = None) -> str:
        items: list[str] = []
        above = None
        for entry in tree:
            if isinstance(entry, list):  # the subclasses of the previous entry
                items[-1] += self.formattree(entry, modname, above)
            else:
                above, bases = entry
                items.append(self.classlink(above, modname))
                if bases and bases != (parent,):
                    items[-1] += f" ({', '.join(self.classlink(base, modname) for base in bases)})"
        return '<ul class="tree">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _split(text: str) -> tuple[str, str]:
    """Return a docstring's first line and its rest, if the first line stands alone."""
    lead, _, rest = text.strip().partition("\n\n")
    return (lead, rest.strip("\n")) if "\n" not in lead else ("", text.strip())


def _doc_of_class(text: str) -> str:
    """Return the text below the name of a class: its signature, and its docstring."""
    call, _, rest = text.strip().partition("\n\n")
    if re.match(r"(?:<a [^>]*>)?\w+(?:</a>)?\(", call):
        # pydoc escapes this part twice.
        call = re.sub(r"&amp;(?=(?:lt|gt|amp);)", "&", call)
        text = f'<div class="signature">{call}</div>'
        return text + (f'<div class="doc">{rest}</div>' if rest else "")
    return f'<div class="doc">{text}</div>' if text.strip() else ""


def _group(html: str) -> str:
    """Render some members of a class, under their heading; inherited ones are folded away."""
    found = re.match(r"([A-Z][a-z ]+(?:defined here|inherited from .*?)):<br>\n", html)
    if found is None:
        return html
    title, members = found[1], html[found.end() :]
    if not members:
        return ""
    if "inherited" in title:
        return f"<details><summary>{title}</summary>{members}</details>"
    return f"<h4>{title}</h4>{members}"


class _Tidy(HTMLParser):
    """Convert pydoc's output to well-formed HTML5, with links to pages of this site.

    :param ids: the anchors of the page; a link to another one is dropped, its text stays.
    :param taken: anchors that were written already: pydoc writes some twice.
    """

    PLAIN = frozenset(
        {"br", "div", "em", "details", "h3", "h4", "li", "p", "section", "strong", "summary", "ul", "wbr"}
    )
    DROPPED = frozenset({"big", "font", "small", "span", "tt"})

    def __init__(self, module: str, ids: set[str], taken: set[str]) -> None:
        super().__init__(convert_charrefs=False)
        self._module, self._ids, self._taken = module, ids, taken
        self._out: list[str] = []
        self._links: list[str] = []
        self._in_entry = ""

    def clean(self, html: str) -> str:
        self.feed(html)
        self.close()
        return "".join(self._out)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self._open_link(given)
        elif tag == "dl":
            self._out.append('<div class="entry">')
        elif tag in ("dt", "dd"):
            # An entry without a description would be no valid description list; and pydoc leaves some open.
            self._end_part()
            self._in_entry = "</div>"
            self._out.append(f'<div class="{"signature" if tag == "dt" else "doc"}">')
        elif tag in self.PLAIN:
            kind = f' class="{escape(given["class"])}"' if "class" in given else ""
            self._out.append(f"<{tag}{kind}>")
        elif tag not in self.DROPPED:
            self.handle_data(self.get_starttag_text() or "")  # <lambda>, <locals>

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            if self._links:
                self._out.append(self._links.pop())
        elif tag in ("dt", "dd"):
            self._end_part()
        elif tag == "dl":
            self._end_part()
            self._out.append("</div>\n")
        elif tag in self.PLAIN and tag not in ("br", "wbr"):
            self._out.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._out.append(escape(data, quote=False))

    def handle_entityref(self, name: str) -> None:
        self._out.append(" " if name == "nbsp" else f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._out.append(f"&#{name};")

    def _end_part(self) -> None:
        self._out.append(self._in_entry)
        self._in_entry = ""

    def _open_link(self, given: dict[str, str]) -> None:
        name, target = given.get("name"), self._target(given.get("href", ""))
        opening = ""
        if name and name not in self._taken:
            self._taken.add(name)
            opening = f'<a id="{escape(name)}" href="#{escape(name)}">'
        elif target:
            opening = f'<a href="{escape(target)}">'
        self._out.append(opening)
        self._links.append("</a>" if opening else "")

    def _target(self, href: str) -> str:
        """Return the target of a link on this site, or nothing."""
        if re.match(r"https?://[\w.-]+(?:[/?#][\w/?#@!$&'()*+,;=:.~%-]*)?$", href):
            return href
        page, _, fragment = href.partition("#")
        name = page.removesuffix(".html")
        if not page or name == self._module:
            return f"#{fragment}" if fragment in self._ids else ""
        if page == name or catalogue.find(name) is None:
            return ""
        return f"/module/{name}" + (f"#{fragment}" if fragment else "")
