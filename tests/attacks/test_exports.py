"""Hostile sites and sitemaps: an export reads, writes and removes nothing outside of its folder."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.attacks.support.attack import Attack, dice, scaled
from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Site
from wsgi_isr.prerender.report import Report
from wsgi_isr.prerender.run import Prerender
from wsgi_isr.prerender.site_client import address_of, site_at
from wsgi_isr.prerender.static_site import NOTES, StaticSite

URL = "http://example.org"
SECRET = "what is in a file outside of the folder"

PATHS = [
    *(
        "/../outside",
        "/../../outside",
        "/a/../../outside",
        "/./../outside",
        "//outside",
        "///outside",
        "/a//../../outside",
    ),
    *(
        "/%2e%2e/outside",
        "/%2e%2e%2foutside",
        "/..%2foutside",
        "/a%2f..%2f..%2foutside",
        "/%252e%252e/outside",
        "/.%2e/outside",
    ),
    *(
        "/..\\outside",
        "/..%5coutside",
        "/a%5c..%5c..%5coutside",
        "/C:/outside",
        "/c:%5coutside",
        "/~/outside",
        "/$HOME/outside",
    ),
    *(
        "/a%00/../outside",
        "/outside%00.html",
        "/a%0a",
        "/a%0d%0a",
        "/%ff",
        "/%c0%ae%c0%ae/outside",
        "/%u002e%u002e/outside",
    ),
    *(
        f"/{NOTES}",
        f"/{NOTES}/",
        f"/{NOTES}/a",
        f"/{quote(NOTES)[:-1]}%6e",
        "/link/outside",
        "/link",
        "/file",
        "/file/a",
        "/loop/a",
    ),
    *(
        "/a",
        "/a/",
        "/a/index.html",
        "/a/index.htm",
        "/A",
        "/index.html",
        "/",
        "/404.html",
        "/404",
        "/.git/config",
        "/.htaccess",
    ),
    *(
        "/" + "x" * 300,
        "/" + "x/" * 200,
        "/" + "é" * 200,
        "/.isr-tmp",
        "/a.css",
        "/a.css/",
        "/a.css/b",
        "/con",
        "/nul.html",
    ),
    *(
        "/..;/outside",
        "/a/..;/..;/outside",
        "/a;/../outside",
        "/a?../outside",
        "/a#/../outside",
        "/....//outside",
        "/.../outside",
    ),
]
PIECES = [
    "/",
    "..",
    ".",
    "%2e",
    "%2f",
    "%5c",
    "\\",
    "outside",
    "a",
    "link",
    "file",
    "%00",
    "%0a",
    "//",
    ";",
    "?",
    "%25",
    "é",
    NOTES,
]
LOCATIONS = [
    "/../outside",
    "//evil.example/..",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "\\\\evil",
    "http://[",
    "/%2e%2e/outside",
]


def export(site: Site, folder: StaticSite, *paths: str, sitemaps: tuple[str, ...] = ()) -> Report:
    work = Prerender(site.isr, site_at(site.isr, URL)[0], pause=site.clock.pause, folder=folder, crawl=True)
    return work.run(paths, sitemaps)


def folder_of(site: Site, root: Path) -> StaticSite:
    return StaticSite(str(root), address_of(site_at(site.isr, URL)[0]))


def tree(root: Path, without: Path) -> dict[str, Any]:
    """Return the files and links below ``root``, except for those in ``without``."""
    found: dict[str, Any] = {}
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(parent, name) != without]
        for path in (Path(parent, name) for name in [*folders, *files]):
            key = str(path.relative_to(root))
            found[key] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def above(tmp_path: Path) -> Path:
    """Make files around the folder ``in/out``, with links to them from there; an export must not change them."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/index.html").write_text(SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    out = tmp_path / "in" / "out"
    out.mkdir(parents=True)
    (out / "link").symlink_to(tmp_path / "outside")
    (out / "up").symlink_to("..")
    (out / "file").symlink_to(tmp_path / "secret.txt")
    (out / "file.html").symlink_to(tmp_path / "secret.txt")
    (out / "loop").symlink_to("loop")
    names = [
        "../secret.txt",
        "../../secret.txt",
        "link/index.html",
        "up/up/secret.txt",
        "/etc/hostname",
        "a\0b",
        "",
        ".",
        "..",
    ]
    sites = {URL: ["", names], "http://other.example": ["", names], "": ["", ["../../secret.txt"]]}
    (out / NOTES).write_text(json.dumps(sites))
    return tmp_path


def random_path(chance: random.Random) -> str:
    return "/" + "".join(chance.choices(PIECES, k=chance.randrange(1, 9)))


def test_no_export_leaves_its_folder(make_site: MakeSite, origin: Origin, above: Path, attack: Attack) -> None:
    out, chance = above / "in" / "out", dice("exports")
    before = tree(above, out)
    paths = [*PATHS, *(random_path(chance) for _ in range(scaled(200)))]
    links = "".join(
        f'<a href="{path}">a</a><img src="{URL}{path}"><link rel=stylesheet href="{path}">' for path in paths
    )
    origin.on("/start", answer(links.encode()))
    for number, location in enumerate(LOCATIONS):
        origin.on(f"/moved/{number}", answer(b"", ("Location", location), status="301 Moved"))
    site = make_site({"/<path:page>": 60}, revalidate=60, watcher="nobody")
    folder = folder_of(site, out)
    moved = [f"/moved/{number}" for number in range(len(LOCATIONS))]
    for one in (["/start", *moved], *([path] for path in paths if "#" not in path)):
        try:
            export(site, folder, *one)
        except ValueError:
            pass  # an invalid path is refused at once
        attack.check(tree(above, out) == before, f"{one[0]}: {tree(above, out)}")
    written = [path for path in out.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(written) > 10, "nothing was exported, so nothing was attacked"
    for path in written:
        attack.check(SECRET.encode() not in path.read_bytes(), f"{path} has what is outside")
        attack.check(out.resolve() in path.resolve().parents, f"{path} leads to {path.resolve()}")
    attack.over("paths")


# Sitemaps ------------------------------------------------------------------------------------------------

ENTITY = '<!DOCTYPE urlset [<!ENTITY x SYSTEM "{}">]><urlset><url><loc>http://example.org/&x;</loc></url></urlset>'
PARAMETER = '<!DOCTYPE urlset [<!ENTITY % x SYSTEM "{}"> %x;]><urlset><url><loc>/a</loc></url></urlset>'
INCLUDE = (
    '<urlset xmlns:x="http://www.w3.org/2001/XInclude">'
    '<url><loc><x:include href="{}" parse="text"/></loc></url></urlset>'
)
LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))
BILLION = f'<!DOCTYPE urlset [<!ENTITY l0 "lol">{LAUGHS}]><urlset><url><loc>/&l12;</loc></url></urlset>'


def urlset(*urls: str) -> bytes:
    return f"<urlset>{''.join(f'<url><loc>{url}</loc></url>' for url in urls)}</urlset>".encode()


def index(*urls: str) -> bytes:
    return f"<sitemapindex>{''.join(f'<sitemap><loc>{url}</loc></sitemap>' for url in urls)}</sitemapindex>".encode()


def hostile_sitemaps(secret: Path) -> dict[str, bytes]:
    """Return sitemaps by name."""
    return {
        "an entity of a file": ENTITY.replace("{}", f"file://{secret}").encode(),
        "an entity beside": ENTITY.replace("{}", secret.name).encode(),
        "a parameter entity": PARAMETER.replace("{}", f"file://{secret}").encode(),
        "an include": INCLUDE.replace("{}", f"file://{secret}").encode(),
        "a billion laughs": BILLION.encode(),
        "a bomb": gzip.compress(b"\0" * 60_000_000),
        "a bomb of lines": gzip.compress(b"/a\n" * 20_000_000),
        "a packed one in a packed one": gzip.compress(gzip.compress(urlset("http://example.org/a"))),
        "itself": index("http://example.org/sitemap.xml", "/sitemap.xml", "http://EXAMPLE.org:80/sitemap.xml"),
        "endless others": index(*(f"http://example.org/more/{number}.xml" for number in range(50))),
        "files": index(
            *(f"file://{secret}", f"../{secret.name}", f"file://localhost{secret}"),
            *(str(secret), f"http://example.org{secret}"),
        ),
        "files as pages": urlset(f"file://{secret}", str(secret), f"http://example.org/..{secret}", f"/%2e%2e{secret}"),
        "another host": urlset(
            "http://evil.example/a", "//evil.example/a", "http://example.org@evil.example/a", "http://example.org.evil/"
        ),
        "no URLs": urlset(
            "javascript:alert(1)", "http://[", "", " ", "\u202e", "http://example.org:99999999/", "a" * 100_000
        ),
        "depth": b"<urlset>" + b"<url>" * 50_000,
        "other letters": b'<?xml version="1.0" encoding="utf-7"?><urlset/>',
        "wide letters": urlset("http://example.org/a").decode().encode("utf-16"),
        "half of one": urlset("http://example.org/a")[:-9],
        "nothing": b"",
        "zeros": b"\0" * 1000,
    }


def test_no_sitemap_reads_a_file_or_asks_another_host(
    make_site: MakeSite, origin: Origin, above: Path, attack: Attack
) -> None:
    out = above / "in" / "out"
    before = tree(above, out)
    secret = above / "secret.txt"
    site = make_site({"/<path:page>": 60}, watcher="nobody")
    for name, data in hostile_sitemaps(secret).items():
        origin.on("/sitemap.xml", answer(data, ("Content-Type", "application/xml"), content_type=False))
        for number in range(50):
            more = index(*(f"http://example.org/more/{other}{number}.xml" for other in range(5)))
            origin.on(f"/more/{number}.xml", answer(more, ("Content-Type", "application/xml"), content_type=False))
        beside = above / "in" / "sitemap.xml"
        beside.write_bytes(data)
        try:
            report = export(site, folder_of(site, out), sitemaps=("/sitemap.xml", str(beside)))
        finally:
            beside.unlink()
        attack.check(tree(above, out) == before, f"{name}: {tree(above, out)}")
        told = f"{report.failed} {report.skipped}"
        attack.check(SECRET not in told, f"{name}: {told}")
        asked = [path for path in origin.calls if SECRET in path]
        attack.check(not asked, f"{name}: the app was asked for {asked}")
        attack.check(origin.calls.total() < 1000, f"{name}: {origin.calls.total()} requests")
        origin.calls.clear()
    attack.over("sitemaps")
