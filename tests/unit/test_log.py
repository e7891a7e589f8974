"""Events as log lines: each event is logged once, and no client writes lines of its own."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_isr.config.rule_set import RuleSet
from wsgi_isr.config.rules import Rule
from wsgi_isr.events import Refused, UndeclaredVary
from wsgi_isr.observe.log import log_events
from wsgi_isr.pages.request_key import PageKey


def refused(path: str, rule: str = "*", reason: str = "set-cookie") -> Refused:
    return Refused("isr:p:1", rule, reason, PageKey("https", "example.org", "", path.encode().decode("latin-1")).text)


def test_a_cookie_under_a_blanket_rule_is_a_warning_with_the_rule_to_write(caplog: pytest.LogCaptureFixture) -> None:
    log_events()(refused("/magic/abc"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "rule '*': /magic/<token> sets a cookie for a visitor without cookies, so it is not cached, and the app may "
        'be called twice for a first visit; for one-time links write "/magic/<token>": 0'
    )


def test_the_token_of_a_link_is_no_part_of_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    log_events()(refused("/magic/s3cret"))
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "/"),
        ("", "/"),
        ("/login", "/login"),
        ("/login/", "/login/"),
        ("/magic/abc", "/magic/<token>"),
        ("/magic/abc/", "/magic/<token>/"),
        ("/en/reset/7/abc", "/en/reset/7/<token>"),
        ("/caf\xe9/abc", "/caf\xe9/<token>"),
        ("//abc", "//<token>"),
        ("/<b>/abc", "/%3Cb%3E/<token>"),
        ("/a\nb/abc", "/a%0Ab/<token>"),
        ("/a\u202eb/abc", "/a%E2%80%AEb/<token>"),
        ('/"/abc', "/%22/<token>"),
        ("/*/abc", "/%2A/<token>"),
        ("/a:b/[c]/abc", "/a%3Ab/%5Bc%5D/<token>"),
        ("/a:b/abc", "/a:b/<token>"),
    ],
)
def test_the_last_segment_of_a_path_is_what_differs(caplog: pytest.LogCaptureFixture, path: str, pattern: str) -> None:
    log_events()(refused(path))
    assert caplog.text.count(f'write "{pattern}": 0') == 1


def test_a_path_below_a_mount_point_is_one_of_the_rules(caplog: pytest.LogCaptureFixture) -> None:
    text = PageKey("https", "example.org", "/app", "/magic/abc").text
    log_events()(Refused("isr:p:1", "*", "set-cookie", text))
    assert 'write "/magic/<token>": 0' in caplog.text


def test_it_is_said_once_for_each_blanket_rule(caplog: pytest.LogCaptureFixture) -> None:
    log = log_events()
    for rule in ("*", "/shop/<path:rest>", "*", "/shop/<path:rest>"):
        log(refused("/shop/abc", rule))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize("event", [refused("/magic/abc", "/magic/<token>"), refused("/magic/abc", "*", "private")])
def test_a_page_that_has_a_rule_of_its_own_or_another_reason_is_no_warning(
    caplog: pytest.LogCaptureFixture, event: Refused
) -> None:
    with caplog.at_level(logging.INFO, "wsgi_isr"):
        log_events()(event)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def unsaid(rule: str, *headers: str) -> UndeclaredVary:
    return UndeclaredVary("isr:p:1", rule, headers, PageKey("https", "example.org", "", "/shop/s3cret").text)


def test_an_app_that_answers_by_a_header_without_saying_so_is_a_warning_once_for_each_rule(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = log_events()
    for rule in ("/shop/<slug>", "*", "/shop/<slug>", "*"):
        log(unsaid(rule, "accept", "cookie", "hx-request"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"rule {rule!r}: to answer {page} the app looks at Accept and HX-Request, and neither its Vary nor the rule "
        'says so: every client gets the page of a client without such a header; write vary=["Accept", "HX-Request"] '
        "in the rule, or Vary in the answer"
        for rule, page in (("/shop/<slug>", "/shop/<slug>"), ("*", "/shop/<token>"))
    ]


def test_a_look_that_has_other_reasons_as_well_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    log = log_events()
    log(unsaid("*", "cookie"))
    log(unsaid("*", "accept-language", "cookie"))
    assert caplog.records == []
    log(unsaid("*", "x-requested-with"))
    assert "X-Requested-With" in caplog.text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_whatever_the_path_the_rule_can_be_written_and_is_one_line(path: str) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("wsgi_isr")
    logger.addHandler(handler)
    try:
        log_events()(refused("/" + path))
    finally:
        logger.removeHandler(handler)
    (line,) = lines
    assert line.isprintable()
    RuleSet({line.rpartition('write "')[2].removesuffix('": 0'): 0}, Rule())


def test_a_path_of_any_length_is_a_line_of_some(caplog: pytest.LogCaptureFixture) -> None:
    log_events()(refused("/" + "x" * 8000 + "/abc"))
    assert len(caplog.text) < 1000
