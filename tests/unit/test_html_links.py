"""Links of a page, and URLs of a sitemap."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_isr.prerender.html_links import (
    SiteAddress,
    absolute,
    css_urls,
    decoded_html,
    in_css,
    in_html,
    read_sitemap,
    spelled,
    with_base,
)

HERE = SiteAddress("https", "example.org")
URL = "https://example.org/a/b"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        pytest.param('<a href="c">', ["https://example.org/a/c"], id="relative to the page"),
        pytest.param('<a href="/c">', ["https://example.org/c"], id="from the root"),
        pytest.param('<a href="../c/./d">', ["https://example.org/c/d"], id="dots"),
        pytest.param('<area href="//cdn.example/x">', ["https://cdn.example/x"], id="another host"),
        pytest.param('<a href="/c#part">', ["https://example.org/c"], id="no fragment"),
        pytest.param('<a href="#part">', [URL], id="only a fragment is the page itself"),
        pytest.param('<a href="?page=2">', [URL + "?page=2"], id="a query"),
        pytest.param('<a href=" /c\n">', ["https://example.org/c"], id="white space around it"),
        pytest.param('<A HREF="/c">', ["https://example.org/c"], id="capitals"),
        pytest.param('<a href="/c?x=1&amp;y=2">', ["https://example.org/c?x=1&y=2"], id="entities"),
        pytest.param('<a href="mailto:x@example.org"><a href="javascript:go()"><a href="data:,x">', [], id="no pages"),
        pytest.param('<a href="http://[x">', [], id="no URL at all"),
        pytest.param('<a href="/c" rel="noopener NoFollow">', [], id="not to be followed"),
        pytest.param('<meta name="robots" content="noindex, nofollow"><a href="/c">', [], id="none of the page is"),
        pytest.param('<!-- <a href="/c"> --><script>"<a href=/d>"</script>', [], id="comments and scripts"),
        pytest.param('<base href="/x/"><a href="c">', ["https://example.org/x/c"], id="a base"),
        pytest.param(
            '<a href="c"><base href="/x/"><base href="/y/">', ["https://example.org/x/c"], id="the first base"
        ),
        pytest.param('<link rel="next" href="/p/2">', ["https://example.org/p/2"], id="link: next"),
        pytest.param('<link rel="canonical" href="/c"><link rel=alternate href=/feed>', ["/c", "/feed"], id="link"),
        pytest.param('<meta http-equiv="refresh" content="0; URL=\'/c\'">', ["https://example.org/c"], id="refresh"),
        pytest.param('<iframe src="/c"></iframe>', ["https://example.org/c"], id="a frame"),
        pytest.param('<![nonsense <a href="/c">', [], id="what no parser takes"),
    ],
)
def test_links_of_a_page(html: str, expected: list[str]) -> None:
    wanted = [absolute(url, URL) for url in expected]
    assert list(in_html(html, URL).links) == wanted


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<link rel="stylesheet" href="/s.css">', ["/s.css"]),
        ('<link rel="alternate stylesheet" href="/s.css">', ["/s.css"]),
        ('<link rel="shortcut icon" href="/i.ico"><link rel=manifest href=/m.json>', ["/i.ico", "/m.json"]),
        ('<script src="/s.js"></script><script>var x</script>', ["/s.js"]),
        ('<img src="/1.png" srcset="/2.png 2x, /3.png 3x">', ["/2.png", "/3.png", "/1.png"]),
        ('<source srcset="/a,b.png 100w,/c.png">', ["/a,b.png", "/c.png"]),
        ('<video src="/v.mp4" poster="/p.png"></video>', ["/v.mp4", "/p.png"]),
        ('<p style="background: url(/bg.png)">', ["/bg.png"]),
        ("<style>@import '/more.css'; p { background: url(\"/bg.png\") }</style>", ["/bg.png", "/more.css"]),
        ('<svg><image href="/i.png"/><use xlink:href="/u.svg#x"/></svg>', ["/i.png", "/u.svg"]),
        ('<object data="/o.svg"></object>', ["/o.svg"]),
        ("<img src='data:image/png;base64,xx'>", []),
        ("<p>url(/nothing.png)</p>", []),
    ],
)
def test_what_it_takes_to_show_a_page(html: str, expected: list[str]) -> None:
    assert sorted(in_html(html, URL).assets) == sorted(f"https://example.org{path}" for path in expected)


def test_urls_of_a_style_sheet_are_relative_to_it_and_comments_have_none() -> None:
    css = '/* url(no.png) */ @import "x.css"; @font-face { src: url( "f.woff2" ) } b { background: url(../i\\ j.png) }'
    assert list(css_urls(css)) == ["x.css", "f.woff2", "../i j.png"]
    assert in_css("b { background: url(../i.png) }", "https://example.org/s/c.css") == ("https://example.org/i.png",)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://example.org/a", "/a"),
        ("http://EXAMPLE.org:80/a", "/a"),
        ("https://example.org:443", "/"),
        ("https://user:x@example.org/a", "/a"),
        ("https://example.org/%7Ea/b%20c", "/~a/b%20c"),
        ("https://example.org/z%C3%BCrich", "/z%C3%BCrich"),
        ("https://example.org/zürich?q=ü", "/z%C3%BCrich?q=%C3%BC"),
        ("https://example.org/a/%2e%2e/b", "/b"),
        ("https://example.org/a%2Fb", "/a/b"),
        ("https://example.org/a?x=1&y=%26", "/a?x=1&y=%26"),
        ("https://example.org:8443/a", None),
        ("https://other.example/a", None),
    ],
)
def test_the_path_of_a_url_is_spelled_in_one_way(url: str, path: str | None) -> None:
    assert HERE.path_of(url) == path


def test_what_is_not_below_the_mount_point_is_another_app() -> None:
    address = SiteAddress("https", "example.org", "/docs")
    for path in ("/docs", "/docs/", "/docs/a"):
        assert address.path_of("https://example.org" + path) == path
    for path in ("/docsy/a", "/a", "/docs/../a", "//docs/a"):
        assert address.path_of("https://example.org" + path) is None


@given(st.text())
def test_a_path_of_any_text_is_spelled_once_and_for_all(text: str) -> None:
    path = "/" + text.encode("utf-8", "replace").decode()
    assert spelled(spelled(path)) == spelled(path)


@given(st.text(alphabet=st.sampled_from("<>!-[]/\"'= abheadrefscript&;#:")), st.binary())
def test_whatever_a_page_is_reading_it_does_not_fail(text: str, body: bytes) -> None:
    in_html(text, URL)
    with_base(text, "/a/b")
    decoded, codec = decoded_html(body, "text/html")
    assert decoded.encode(codec) == body


# A page of /a/b that is served at /a/b/ ----------------------------------------------------------------

BASE = '<base href="/a/b">'


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<head><a href="c">', f'<head>{BASE}<a href="c">'),
        ('<!doctype html>\n<html lang="en">\n<head\n data-x="1">\n<img src=i.png>', None),
        ('<html><body><a href="c">', f'<html>{BASE}<body><a href="c">'),
        (
            '<!DOCTYPE html><p style="background: url(c.png)">',
            f'<!DOCTYPE html>{BASE}<p style="background: url(c.png)">',
        ),
        ('\ufeff<a href="?page=2">', f'\ufeff{BASE}<a href="?page=2">'),
        ('<!-- <head> --><head><img srcset="/a 1x, b 2x">', f'<!-- <head> --><head>{BASE}<img srcset="/a 1x, b 2x">'),
        ('<head><form action="send">', f'<head>{BASE}<form action="send">'),
        ('<head><base href="x/"><a href="c">', '<head><base href="/a/x/"><base href="x/"><a href="c">'),
    ],
)
def test_a_base_is_put_into_a_page_whose_urls_depend_on_its_own(html: str, expected: str | None) -> None:
    expected = html.replace('data-x="1">', f'data-x="1">{BASE}') if expected is None else expected
    assert with_base(html, "/a/b") == expected


@pytest.mark.parametrize(
    "html",
    [
        '<head><a href="/c"><a href="#x"><a href="https://example.org/d"><a href="mailto:x@y"><img src="data:,">',
        '<head><base href="/x/"><a href="c">',
        "<head><a href><p>no URL",
        "",
    ],
)
def test_other_pages_are_left_as_they_are(html: str) -> None:
    assert with_base(html, "/a/b") == html


def test_a_page_is_read_in_its_own_encoding() -> None:
    text = "<head><meta charset=iso-8859-15><a href=c>zehn €"
    assert decoded_html(text.encode("iso-8859-15"), "text/html") == (text, "iso-8859-15")
    assert decoded_html("<p>ü".encode("cp1252"), "text/html; charset=windows-1252") == ("<p>ü", "windows-1252")
    assert decoded_html("<p>ü".encode(), "text/html; charset=nonsense") == ("<p>ü", "utf-8")


# Sitemaps ----------------------------------------------------------------------------------------------

XMLNS = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
MAP = f"""<?xml version="1.0" encoding="UTF-8"?>
<urlset {XMLNS} xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">
<url><loc> https://example.org/a </loc><image:image><image:loc>https://example.org/i.png</image:loc></image:image></url>
<url><loc>https://example.org/b?x=1&amp;y=2</loc></url></urlset>""".encode()


def test_a_sitemap_lists_pages_and_an_index_lists_sitemaps() -> None:
    assert read_sitemap(MAP).pages == ("https://example.org/a", "https://example.org/b?x=1&y=2")
    index = f"<sitemapindex {XMLNS}><sitemap><loc>https://example.org/s.xml.gz</loc></sitemap></sitemapindex>"
    assert read_sitemap(index.encode()).maps == ("https://example.org/s.xml.gz",)


def test_a_sitemap_may_be_packed_or_plain_text() -> None:
    assert read_sitemap(gzip.compress(MAP)) == read_sitemap(MAP)
    assert read_sitemap(b"\xef\xbb\xbfhttps://example.org/a\r\n\n# note\n/b\n").pages == ("https://example.org/a", "/b")
    assert read_sitemap(b"") == ((), ())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"<urlset><url>", "is not XML"),
        (b"<html></html>", "is no sitemap: it begins with <html>"),
        (b"\x1f\x8bnot gzip", "cannot be unpacked"),
        (gzip.compress(MAP)[:-9], "cannot be unpacked"),
        (gzip.compress(b"/a\n" * (18 * 1024 * 1024)), "is larger than 50 MiB"),
    ],
)
def test_what_is_no_sitemap_says_why(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_sitemap(data)
