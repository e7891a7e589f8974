"""Pages as files: their names and contents. No file is outside of the folder."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgi_isr.errors import ConfigError
from wsgi_isr.prerender.html_links import SiteAddress
from wsgi_isr.prerender.static_site import NOTES, Answer, NoFile, StaticSite, file_of, redirect_page

HERE = SiteAddress("https", "example.org")
HTML = (("Content-Type", "text/html; charset=utf-8"),)


def page(body: bytes | str = b"<p>page", *headers: tuple[str, str], code: int = 200) -> Answer:
    return Answer(code, headers or HTML, body.encode() if isinstance(body, str) else body)


def files_in(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> StaticSite:
    return StaticSite(str(tmp_path / "out"), HERE)


def out(folder: StaticSite) -> dict[str, bytes]:
    return files_in(Path(folder.root))


@pytest.mark.parametrize(
    ("path", "is_html", "expected"),
    [
        ("/", True, "index.html"),
        ("/a", True, "a/index.html"),
        ("/a/", True, "a/index.html"),
        ("/a/b", True, "a/b/index.html"),
        ("/a/b.html", True, "a/b.html"),
        ("/a.css", True, "a.css/index.html"),
        ("/a/b.css", False, "a/b.css"),
        ("/feed", False, "feed"),
        ("/zürich/b c", True, "zürich/b c/index.html"),
        ("/.well-known/x", False, ".well-known/x"),
        ("/a..b/...", False, "a..b/..."),
    ],
)
def test_which_file_a_page_is(path: str, is_html: bool, expected: str) -> None:
    assert "/".join(file_of(path, is_html)) == expected


@pytest.mark.parametrize(
    "path",
    ["/..", "/../a", "/a/../b", "/./a", "/a//b", "//a", "/a\0b", "/a\nb", "/a\\b", "/" + "x" * 256, "/" + "ü" * 128],
)
def test_a_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(NoFile):
        file_of(path, True)


def test_what_is_no_html_at_a_path_with_a_slash_at_its_end_is_left_out() -> None:
    with pytest.raises(NoFile) as error:
        file_of("/api/", False)
    assert not error.value.failed


parts = st.sampled_from(["..", ".", "", "a", "%2e%2e", "%2F", "%00", "..%2f", "index.html", "/etc"])
paths = st.one_of(st.text(st.sampled_from("/.%2eEfF05cC\\~ab\0é")), st.lists(parts).map("/".join))


@example(path="/../../outside", is_html=True)
@example(path="/%2e%2e/outside", is_html=True)
@example(path="//outside", is_html=True)
@example(path="/a%2F..%2F..%2F..%2Foutside", is_html=True)
@given(path=paths, is_html=st.booleans())
def test_nothing_is_ever_written_outside_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, path: str, is_html: bool
) -> None:
    above = tmp_path_factory.mktemp("above")
    folder = StaticSite(str(above / "in" / "out"), HERE)
    kind = () if is_html else (("Content-Type", "text/css"),)
    for given_path in (path, "/" + path, quote(path)):
        try:
            folder.put(given_path, page(b"x", *kind))
        except NoFile:
            pass
    assert [str(file) for file in files_in(above) if not file.startswith("in/out/")] == []


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path, folder: StaticSite) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "index.html").write_text("theirs")
    os.symlink(outside, Path(folder.root) / "a")
    os.symlink(outside / "index.html", Path(folder.root) / "b.html")
    with pytest.raises(NoFile, match="leads out of it"):
        folder.put("/a", page())
    folder.put("/b.html", page())
    assert files_in(outside) == {"index.html": b"theirs"}
    assert not (Path(folder.root) / "b.html").is_symlink()


def test_a_file_is_readable_by_the_web_server_and_keeps_its_time_while_it_is_the_same(folder: StaticSite) -> None:
    folder.put("/a", page("<p>one"))
    file = Path(folder.root) / "a" / "index.html"
    assert file.stat().st_mode & 0o777 == 0o666 & ~_mask()
    os.utime(file, (1, 1))

    again = StaticSite(folder.root, HERE)
    again.put("/a", page("<p>one"))
    assert (again.written, again.unchanged, file.stat().st_mtime) == (0, 1, 1)
    again.put("/a", page("<p>two"))
    assert (again.written, file.read_text()) == (1, "<p>two")
    assert sorted(os.listdir(file.parent)) == ["index.html"]


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_page_with_relative_urls_gets_a_base_where_a_slash_is_added_and_nowhere_else(folder: StaticSite) -> None:
    text = '<head><a href="c">ü</a>'
    for path in ("/a/b", "/a/c/", "/a/d.html"):
        folder.put(path, page(text))
    assert out(folder) == {
        "a/b/index.html": f'<head><base href="/a/b">{text[6:]}'.encode(),
        "a/c/index.html": text.encode(),
        "a/d.html": text.encode(),
    }


def test_a_page_keeps_its_encoding_and_what_is_packed_is_unpacked(folder: StaticSite) -> None:
    latin = '<head><a href="c">ü</a>'.encode("latin-1")
    folder.put("/a", page(latin, ("Content-Type", "text/html; charset=latin-1")))
    folder.put("/s.js", page(gzip.compress(b"1+1"), ("Content-Type", "text/javascript"), ("Content-Encoding", "gzip")))
    assert out(folder) == {"a/index.html": latin[:6] + b'<base href="/a">' + latin[6:], "s.js": b"1+1"}
    with pytest.raises(NoFile, match="content-encoding: br"):
        folder.put("/b.js", page(b"?", ("Content-Type", "text/javascript"), ("Content-Encoding", "br")))


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/new", "/new"),
        ("new?x=1#y", "/a/new?x=1#y"),
        ("https://example.org/new", "/new"),
        ("http://example.org:80/new", "/new"),
        ("https://other.example/new", "https://other.example/new"),
        ("/x?a=1&b=%22<", "/x?a=1&amp;b=%22&lt;"),
    ],
)
def test_a_redirect_is_a_page_that_leads_on(folder: StaticSite, location: str, target: str) -> None:
    folder.put("/a/old", page(b"", ("Location", location), code=308))
    text = out(folder)["a/old/index.html"].decode()
    assert f'content="0; url={target}"' in text
    assert f'<link rel="canonical" href="{target}">' in text


@pytest.mark.parametrize("location", ["/a/", "/a", "https://example.org/a/", "/a?x=1"])
def test_a_redirect_that_the_server_of_the_files_does_itself_is_no_file(folder: StaticSite, location: str) -> None:
    folder.put("/a", page(b"", ("Location", location), code=308))
    assert out(folder) == {}


def test_a_redirect_to_no_page_is_refused(folder: StaticSite) -> None:
    with pytest.raises(NoFile):
        folder.put("/a", page(b"", ("Location", "javascript:alert(1)"), code=301))
    assert b"<script>" not in redirect_page("/<script>")


def test_a_page_with_a_query_is_left_out_and_an_error_is_no_page(folder: StaticSite) -> None:
    with pytest.raises(NoFile) as error:
        folder.put("/a?page=2", page())
    assert not error.value.failed
    with pytest.raises(NoFile, match="status-404"):
        folder.put("/a", page(code=404))
    folder.put_not_found(page("not here", code=404))
    assert out(folder) == {"404.html": b"not here"}


@pytest.mark.parametrize("order", [("/a", "/a/"), ("/a/", "/a")])
def test_of_two_pages_for_one_file_the_same_one_wins_in_any_order(folder: StaticSite, order: tuple[str, str]) -> None:
    refused = []
    for path in order:
        try:
            folder.put(path, page(f"<p>{path}"))
        except NoFile:
            refused.append(path)
    assert out(folder) == {"a/index.html": b"<p>/a"}
    assert [*refused, *folder.lost] == ["/a/"]


def test_two_pages_that_are_the_same_share_a_file(folder: StaticSite) -> None:
    folder.put("/", page("<p>home"))
    folder.put("/index.html", page("<p>home"))
    assert (out(folder), folder.lost, folder.written) == ({"index.html": b"<p>home"}, {}, 1)


def test_a_file_in_the_way_of_a_folder_is_said(folder: StaticSite) -> None:
    folder.put("/feed", page(b"<rss>", ("Content-Type", "application/rss+xml")))
    with pytest.raises(NoFile, match="in the way"):
        folder.put("/feed/x", page())
    folder.put("/b/c", page())
    with pytest.raises(NoFile, match="in the way"):
        folder.put("/b", page(b"", ("Content-Type", "application/json")))
    assert sorted(out(folder)) == ["b/c/index.html", "feed"]


def test_a_path_that_is_too_long_for_the_file_system_is_said(folder: StaticSite) -> None:
    with pytest.raises(NoFile, match="too long"):
        folder.put("/" + "/".join(["x" * 200] * 30), page())


def test_a_folder_that_cannot_be_made_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--export"):
        StaticSite(str(tmp_path / "file" / "x"), HERE)


@pytest.mark.parametrize(
    "notes",
    [
        "",
        "[]",
        "{",
        '{"https://example.org": 1}',
        '{"https://example.org": ["", ["../outside", "/etc/x", "l/in"]]}',
        '{"https://example.org": ["", ["\\u0000", "\\ud800", ""]]}',
    ],
)
def test_notes_that_somebody_else_has_written_remove_nothing_outside(notes: str, folder: StaticSite) -> None:
    root = Path(folder.root)
    (root.parent / "outside").write_text("")
    (root.parent / "in").write_text("")
    (root / "l").symlink_to(root.parent)
    (root / NOTES).write_text(notes)
    folder.put("/a", page())
    folder.finish(whole=True)
    assert (root.parent / "outside").exists()
    assert (root.parent / "in").exists()
    assert json.loads((root / NOTES).read_text())[HERE.at("")] == ["", ["a/index.html"]]


@pytest.mark.parametrize("path", [f"/{NOTES}", f"/{NOTES}/", f"/{NOTES}/a"])
def test_no_page_takes_the_place_of_the_notes(path: str, folder: StaticSite) -> None:
    with pytest.raises(NoFile, match="notes"):
        folder.put(path, page())


def test_notes_that_cannot_be_written_leave_nothing_behind(folder: StaticSite) -> None:
    (Path(folder.root) / NOTES).mkdir()
    with pytest.raises(OSError, match="directory"):
        folder.finish(whole=True)
    assert os.listdir(folder.root) == [NOTES]


def test_a_page_that_is_gone_does_not_take_along_one_whose_file_is_the_same(folder: StaticSite) -> None:
    """On a file system without case, ``/About`` may have become ``/about``."""
    root = Path(folder.root)
    folder.put("/About", page())
    folder.finish(whole=True)
    (root / "About").rename(root / "about")
    (root / "About").symlink_to("about")
    again = StaticSite(folder.root, HERE)
    again.put("/about", page())
    again.finish(whole=True)
    assert (root / "about" / "index.html").exists()
    assert again.removed == 0


def test_the_notes_of_an_export_are_no_page(folder: StaticSite) -> None:
    with pytest.raises(NoFile, match="notes"):
        folder.put(f"/{NOTES}", page(b"{}", ("Content-Type", "application/json")))
