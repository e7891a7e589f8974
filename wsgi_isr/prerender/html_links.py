"""Find the references of a page, which are its links and the files it needs, and the URLs of a sitemap.

The functions take text and return URLs, without I/O. Browsers accept any text as HTML, so these functions raise nothing
for it: they skip unreadable parts.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit
from xml.etree import ElementTree

#: The most bytes of a sitemap, unpacked: the limit of sitemaps.org.
LARGEST_SITEMAP = 50 * 1024 * 1024

# RFC 3986, 3.3: characters that a path may contain without encoding.
_IN_PATH = "/!$&'()*+,;=:@-._~"
_SPACE = " \t\n\r\f"
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_PORTS = {"http": ":80", "https": ":443"}

# `rel` of a link element: files that the page needs, and other pages.
_NEEDED = frozenset({"stylesheet", "icon", "apple-touch-icon", "mask-icon", "manifest", "modulepreload", "preload"})
_PAGES = frozenset({"canonical", "next", "prev", "alternate"})
_SOURCES = frozenset({"script", "img", "source", "video", "audio", "track", "embed", "input", "iframe", "frame"})
# Attributes that may contain a URL relative to the page.
_URLS = ("href", "src", "action", "formaction", "poster", "data", "cite", "xlink:href")
_SETS = ("srcset", "imagesrcset")


class Found(NamedTuple):
    """The references of a page, as absolute URLs without fragments.

    ``links``: other pages, unless their author asks robots not to follow (``rel=nofollow``, or the page's own ``<meta
    name=robots>``): carts and log-outs have such links. ``assets``: style sheets, scripts, images, frames.
    """

    links: tuple[str, ...]
    assets: tuple[str, ...]


class SiteAddress(NamedTuple):
    """The scheme, host and mount point of a site, for links.

    ``mount`` is the app's mount point as text, empty for the root of the host.
    """

    scheme: str
    host: str
    mount: str = ""

    def at(self, path: str) -> str:
        """Return the URL of a path (and query) as it is written in URLs."""
        return f"{self.scheme}://{self.host}{path}"

    def holds(self, url: str) -> bool:
        """Return whether an absolute URL belongs to this host, by http or https."""
        split = urlsplit(url)
        host = split.netloc.rpartition("@")[2].lower()
        return host.removesuffix(_PORTS.get(split.scheme, "::")) == self.host

    def path_of(self, url: str) -> str | None:
        """Return the normalized path and query of an absolute URL; ``None`` outside of the site or the mount point."""
        split = urlsplit(url)
        if not self.holds(url):
            return None
        # Browsers take `%2e%2e` for `..` as well.
        path = _without_dots(spelled(split.path or "/"))
        text = unquote_to_bytes(path).decode("utf-8", "surrogateescape")
        if self.mount and text != self.mount and not text.startswith(self.mount + "/"):
            return None
        query = quote(split.query, safe=_IN_PATH + "?%")
        return path + (f"?{query}" if query else "")


def spelled(path: str) -> str:
    """Return a path as written in a URL, encoded in one way for all spellings."""
    return quote(unquote_to_bytes(path), safe=_IN_PATH)


def _without_dots(path: str) -> str:
    """Return a path without dot segments (RFC 3986, 5.2.4).

    ``urljoin`` cannot do this: it takes a path that begins with two slashes for a host.
    """
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if path.endswith(("/.", "/..")):
        kept.append("")
    return "/" + "/".join(kept)


def absolute(url: str, base: str) -> str | None:
    """Return ``url`` resolved against ``base``, without its fragment; ``None`` where it leads to no page."""
    try:
        joined = urljoin(base, url.strip(_SPACE))
        split = urlsplit(joined)
    except ValueError:
        return None
    return split._replace(fragment="").geturl() if split.scheme in ("http", "https") and split.netloc else None


def is_relative(url: str) -> bool:
    """Return whether a URL depends on the path of the page that contains it."""
    url = url.strip(_SPACE)
    return bool(url) and url[0] not in "/#\\" and not _SCHEME.match(url)


# HTML ------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Read one page to its end. ``after_head`` is the offset in the text for an insertion at the start of the head."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.base: str | None = None
        self.follow = True
        self.relative = False
        self.links: list[str] = []
        self.assets: list[str] = []
        self.after_head = 1 if text.startswith("\ufeff") else 0
        self._wanted = ["head", "html", "!doctype"]
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._in_style = False
        try:
            self.feed(text)
            self.close()
        except (AssertionError, ValueError):
            pass  # html.parser refuses some declarations; the text before them has been read

    def _insert_after(self, element: str, length: int) -> None:
        if element in self._wanted:
            line, column = self.getpos()
            self.after_head = self._lines[line - 1] + column + length
            del self._wanted[self._wanted.index(element) :]

    def handle_decl(self, decl: str) -> None:
        if decl[:7].lower() == "doctype":
            self._insert_after("!doctype", len(decl) + 3)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in reversed(attrs) if value is not None}
        self._insert_after(tag, len(self.get_starttag_text() or ""))
        if tag == "base":
            self.base = given.get("href") if self.base is None else self.base
            return
        self._in_style = tag == "style"
        styled = list(css_urls(given["style"])) if "style" in given else []
        several = [url for name in _SETS if name in given for url in _srcset(given[name])]
        self.assets += styled + several
        self._note([given[name] for name in _URLS if name in given] + styled + several)
        rel = set(given.get("rel", "").lower().split())
        if tag in ("a", "area"):
            if "href" in given and "nofollow" not in rel:
                self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            if rel & _NEEDED:
                self.assets.append(given["href"])
            elif rel & _PAGES and "nofollow" not in rel:
                self.links.append(given["href"])
        elif tag == "meta":
            self._meta(given)
        elif tag in _SOURCES:
            self.assets += [given[name] for name in ("src", "poster") if name in given]
            if tag in ("iframe", "frame") and "src" in given:
                self.links.append(given["src"])
        elif tag in ("object", "image", "use"):
            self.assets += [given[name] for name in ("data", "href", "xlink:href") if name in given]

    def _meta(self, given: dict[str, str]) -> None:
        content = given.get("content", "")
        if given.get("name", "").lower() == "robots":
            words = re.split(r"[\s,]+", content.lower())
            self.follow = self.follow and "nofollow" not in words and "none" not in words
        elif given.get("http-equiv", "").lower() == "refresh":
            target = re.search(r"url\s*=\s*['\"]?([^'\"]*)", content, re.IGNORECASE)
            if target:
                self.links.append(target[1])
                self._note([target[1]])

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            urls = list(css_urls(data))
            self.assets += urls
            self._note(urls)

    def _note(self, urls: Iterable[str]) -> None:
        self.relative = self.relative or any(map(is_relative, urls))


def in_html(text: str, url: str) -> Found:
    """Return the references of the page at ``url``."""
    read = _Reader(text)
    base = (absolute(read.base, url) if read.base else None) or url
    return Found(tuple(_all(read.links, base)) if read.follow else (), tuple(_all(read.assets, base)))


def with_base(text: str, path: str) -> str:
    """Return the page of ``path`` so that it means the same where it is served at ``path/``.

    If one of its URLs depends on its place, a ``<base>`` is inserted at the start of its head.
    """
    read = _Reader(text)
    if (read.base is None and not read.relative) or (read.base is not None and not is_relative(read.base)):
        return text
    href = path if read.base is None else urljoin(path, read.base.strip(_SPACE))
    written = href.replace("&", "&amp;").replace('"', "&quot;")
    return f'{text[: read.after_head]}<base href="{written}">{text[read.after_head :]}'


def in_css(text: str, url: str) -> tuple[str, ...]:
    """Return the files that a style sheet at ``url`` needs, as absolute URLs."""
    return tuple(_all(css_urls(text), url))


_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CSS_URL = re.compile(
    r"""url\(\s*(?:"([^"]*)"|'([^']*)'|((?:\\.|[^)"'\s\\])*))\s*\)|@import\s+(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE
)


def css_urls(text: str) -> Iterator[str]:
    """Yield every ``url()`` and ``@import`` of a style sheet, as written there."""
    for groups in _CSS_URL.findall(_COMMENT.sub(" ", text)):
        if url := re.sub(r"\\(.)", r"\1", "".join(groups)):
            yield url


def _srcset(value: str) -> Iterator[str]:
    """Yield the URLs of a ``srcset``.

    They may contain commas, but not at their end (HTML, "Parsing a srcset attribute").
    """
    while value := value.lstrip(_SPACE + ","):
        url, *after = value.split(None, 1)
        value = after[0] if after else ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            value = value.partition(",")[2]
        yield url


def _all(urls: Iterable[str], base: str) -> Iterator[str]:
    for url in dict.fromkeys(urls):
        if (found := absolute(url, base)) is not None:
            yield found


_META_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*['\"]?\s*([a-zA-Z0-9_.:-]+)", re.IGNORECASE)


def decoded_html(body: bytes, content_type: str) -> tuple[str, str]:
    """Return the text of a page, and the codec that encodes it to the same bytes."""
    named = re.search(r"charset\s*=\s*[\"']?([a-zA-Z0-9_.:-]+)", content_type, re.IGNORECASE)
    charset = named[1] if named else None
    if charset is None and (meta := _META_CHARSET.search(body[:1024])):
        charset = meta[1].decode("ascii")
    for codec in (charset, "utf-8"):
        try:
            if codec and (text := body.decode(codec)).encode(codec) == body:
                return text, codec
        except (LookupError, UnicodeError):
            pass
    return body.decode("latin-1"), "latin-1"


# Sitemaps --------------------------------------------------------------------------------------------


class Sitemap(NamedTuple):
    """The URLs of pages, and those of further sitemaps."""

    pages: tuple[str, ...]
    maps: tuple[str, ...]


def read_sitemap(data: bytes) -> Sitemap:
    """Parse a sitemap (sitemaps.org): XML, an index of others, or one URL a line; packed by gzip or not.

    :raises ValueError: ``data`` is none of these; the message has the reason.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(LARGEST_SITEMAP + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"cannot be unpacked: {error}") from None
    if len(data) > LARGEST_SITEMAP:
        raise ValueError("is larger than 50 MiB, which no sitemap may be")
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"<") and b"\0" not in text:
        lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
        return Sitemap(tuple(line for line in lines if line and not line.startswith("#")), ())
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"is not XML: {error}") from None
    kind = _local(root.tag)
    if kind not in ("urlset", "sitemapindex"):
        raise ValueError(f"is no sitemap: it begins with <{kind}>")
    entries = [entry for entry in root if _local(entry.tag) in ("url", "sitemap")]
    urls = [(entry.text or "").strip() for one in entries for entry in one if _local(entry.tag) == "loc"]
    found = tuple(url for url in urls if url)
    return Sitemap(found, ()) if kind == "urlset" else Sitemap((), found)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
