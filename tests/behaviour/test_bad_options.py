"""Options that cannot work are an error at start. The error names the option and the remedy."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

from tests.behaviour.conftest import MakeSite
from tests.behaviour.origin import Origin, answer
from tests.behaviour.visitor import Clock
from wsgi_isr import ISR, ConfigError, ISRError, Rule, wrap
from wsgi_isr.config.settings import Settings

APP = answer(b"x")


def refusal(rules: Any = None, **options: Any) -> str:
    """Return the one line of the error."""
    options.setdefault("store", "memory://")
    with pytest.raises(ConfigError) as caught:
        ISR(APP, rules, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Names


def test_an_unknown_option_is_named() -> None:
    assert "flavour" in refusal(flavour="vanilla")


@pytest.mark.parametrize(("wrong", "right"), [("revalidat", "revalidate"), ("stor", "store"), ("Expire", "expire")])
def test_a_misspelt_option_is_told_its_right_name(wrong: str, right: str) -> None:
    message = refusal(**{wrong: 60})
    assert wrong in message
    assert right in message.replace(wrong, "", 1)


def test_an_unknown_option_of_a_rule_is_named() -> None:
    with pytest.raises((ConfigError, TypeError), match="revalidat"):
        Rule(revalidat=60)  # type: ignore[call-arg]


def test_an_unknown_option_in_a_mapping_is_named_with_its_pattern() -> None:
    message = refusal({"/blog/<slug>": {"revalidat": 60}})
    assert "revalidat" in message
    assert "/blog/<slug>" in message


def test_an_option_of_the_whole_is_none_of_a_rule() -> None:
    message = refusal({"/a": {"revalidate": 60, "store": "memory://"}})
    assert "store" in message


# Values


IMPOSSIBLE = [
    ("revalidate", -1),
    ("revalidate", "soon"),
    ("revalidate", "60x"),
    ("revalidate", math.nan),
    ("revalidate", math.inf),
    ("revalidate", -math.inf),
    ("revalidate", []),
    ("revalidate", object()),
    ("expire", 0),
    ("expire", -5),
    ("expire", "later"),
    ("expire", math.nan),
    ("render_timeout", 0),
    ("render_timeout", -1),
    ("render_timeout", "x"),
    ("render_timeout", math.nan),
    ("lock_timeout", -1),
    ("lock_timeout", "x"),
    ("negative_ttl", -1),
    ("negative_ttl", "x"),
    ("max_body", -1),
    ("max_body", "large"),
    ("max_body", 1.5),
    ("statuses", ["OK"]),
    ("statuses", [99]),
    ("statuses", [1000]),
    ("statuses", 200),
    ("query", 5),
    ("query", [5]),
    ("query", [""]),
    ("other_query", "drop"),
    ("vary", 5),
    ("vary", [""]),
    ("vary", ["two words"]),
    ("vary", {"Accept-Language": "de"}),
    ("cookies", 5),
    ("cookies", [None]),
    ("bypass", "yes"),
    ("bypass", True),
]

IMPOSSIBLE_FOR_ALL = [
    ("store", ""),
    ("store", 5),
    ("store", "nowhere://"),
    ("store", "no URL"),
    ("store", "memory://host"),
    ("store", "memory://?flavour=vanilla"),
    ("namespace", 5),
    ("namespace", ""),
    ("local_cache_bytes", -1),
    ("local_cache_bytes", "much"),
    ("canonical_url", "example.org"),
    ("canonical_url", "ftp://example.org"),
    ("canonical_url", "https://"),
    ("canonical_url", "https://example.org/path"),
    ("canonical_url", 5),
    ("ignore_cookies", 5),
    ("uncacheable_ttl", 0),
    ("uncacheable_ttl", -1),
    ("background_threads", 0),
    ("background_threads", -1),
    ("background_threads", 1.5),
    ("background_queue", -1),
    ("background_queue", "long"),
    ("drain_timeout", -1),
    ("drain_timeout", "x"),
]


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE + IMPOSSIBLE_FOR_ALL)
def test_an_impossible_value_is_named_with_its_option(option: str, value: Any) -> None:
    message = refusal(**{option: value})
    assert option in message


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE)
def test_an_impossible_value_in_a_mapping_is_named_with_its_option_and_pattern(option: str, value: Any) -> None:
    message = refusal({"/blog/<slug>": {"revalidate": 60, option: value}})
    assert option in message
    assert "/blog/<slug>" in message


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE)
def test_an_impossible_value_of_a_rule_is_named_with_its_option(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        # Only ISR knows the names of profiles.
        ISR(APP, {"/a": Rule(**{"revalidate": 60, option: value})}, store="memory://")


@pytest.mark.parametrize("value", ["soon", [], object(), -1, "60 s", True])
def test_an_impossible_rule_is_named_with_its_pattern(value: Any) -> None:
    assert "/blog/<slug>" in refusal({"/blog/<slug>": value})


def test_a_negative_number_is_in_the_message() -> None:
    assert "-17" in refusal(revalidate=-17)


def test_an_unknown_profile_is_told_the_known_ones() -> None:
    assert "hours" in refusal(revalidate="hour")


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        (None, {"revalidate": 60, "expire": 59}),
        ({"/a": Rule(revalidate=60)}, {"expire": 30}),
        ({"/a": {"expire": 30}}, {"revalidate": 60}),
        ({"/a": {"revalidate": "hours", "expire": 30}}, {}),
        ({"/a": Rule(revalidate=60, expire=59)}, {}),
        ({"/a": {"revalidate": False, "expire": 30}}, {}),
    ],
    ids=["options", "expire inherited", "revalidate inherited", "profile", "a rule alone", "False"],
)
def test_expire_below_revalidate_is_refused_whoever_said_which(rules: Any, options: dict[str, Any]) -> None:
    message = refusal(rules, **options)
    assert "expire" in message
    assert "revalidate" in message


# Patterns


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/a"),
        ("/a/<x>", "/a/<y>"),
        ("/a/<string:x>", "/a/<x>"),
        ("/a/<int:x>/b", "/a/<int:id>/b"),
        ("/<path:x>", "/<path:rest>"),
    ],
)
def test_two_equal_patterns_are_refused_and_named(one: str, other: str) -> None:
    message = refusal([(one, 10), (other, 20)])
    assert one in message
    assert other in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a/<x>", "/a/<int:x>"),
        ("/a/<x>", "/a/<path:x>"),
        ("/a", "/a/"),
        ("/a/<x>", "/b/<x>"),
        ("/a/<int(min=1):x>", "/a/<int:x>"),
    ],
)
def test_two_patterns_that_only_overlap_are_accepted(one: str, other: str) -> None:
    ISR(APP, [(one, 10), (other, 20)], store="memory://")


@pytest.mark.parametrize(
    "pattern", ["a", "", "/<", "/<x", "/<int:>", "/<nosuch:x>", "/<x>/<x>", "/<int(:x>", "http://x/", 5, None]
)
def test_a_pattern_that_is_none_is_refused_and_named(pattern: Any) -> None:
    assert str(pattern) in refusal([(pattern, 10)])


@pytest.mark.parametrize("rules", [5, "/a", [5], [("/a",)], [("/a", 1, 2)]])
def test_rules_that_are_none_are_refused(rules: Any) -> None:
    refusal(rules)


# CDNs


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"cdn": "akamai"}, ["cdn", "cloudflare"]),
        ({"cdn": "cloudflare", "cdn_token": "x"}, ["cdn_zone", "WSGI_ISR_CDN_ZONE"]),
        ({"cdn": "fastly", "cdn_zone": "x"}, ["cdn_token", "WSGI_ISR_CDN_TOKEN"]),
        ({"cdn": "bunny", "cdn_zone": "../x", "cdn_token": "x"}, ["cdn_zone", "../x"]),
        ({"cdn": "varnish"}, ["cdn_purge_url"]),
        ({"cdn": "generic"}, ["cdn_purge_url"]),
        ({"cdn": "varnish", "cdn_zone": "x", "cdn_purge_url": "http://127.0.0.1/"}, ["cdn_zone"]),
        ({"cdn": "varnish", "cdn_purge_url": "ftp://127.0.0.1/"}, ["cdn_purge_url", "ftp://"]),
        ({"cdn": "varnish", "cdn_purge_url": "http://127.0.0.1:x/"}, ["cdn_purge_url"]),
        ({"cdn": "varnish", "cdn_purge_url": "http://127.0.0.1/?x"}, ["cdn_purge_url"]),
        ({"cdn": "varnish", "cdn_purge_url": "http://10.0.0.1/", "cdn_token": "x"}, ["clear text", "https"]),
        ({"cdn_purge_url": "http://127.0.0.1/"}, ["cdn_purge_url", "cdn="]),
        ({"cdn_token": "x"}, ["cdn_token", "cdn="]),
    ],
)
def test_options_of_a_cdn_that_do_not_fit_together_are_refused_with_the_remedy(
    options: dict[str, Any], names: list[str]
) -> None:
    message = refusal(**options, hosts=["example.org"])
    assert [name for name in names if name not in message] == []


def test_neither_a_token_nor_a_password_is_shown() -> None:
    secret = "my secret"
    messages = [
        refusal(cdn="cloudflare", cdn_zone="x", cdn_token=secret),
        refusal(cdn="generic", cdn_purge_url=f"https://user:{secret.replace(' ', '')}@example.org/"),
        *(
            refusal(cdn="generic", cdn_purge_url=url)
            for url in (
                "https://user:mysecret@example.org/?x",
                "ftp://user:mysecret@example.org/",
                "https://user:mysecret@example.org:x/",
                "user:mysecret@example.org",
                "https://user:my secret'@example.org/",
            )
        ),
        repr(Settings(cdn="cloudflare", cdn_zone="x", cdn_token="secret", secret="secret")),
    ]
    assert [message for message in messages if "secret'" in message or "mysecret" in message] == []


def test_a_cdn_needs_the_hosts_that_there_are_pages_for() -> None:
    behind = {"cdn": "varnish", "cdn_purge_url": "http://127.0.0.1/"}
    message = refusal(**behind)
    assert "hosts=" in message
    assert "canonical_url=" in message
    ISR(APP, store="memory://", hosts=["example.org"], **behind)
    ISR(APP, store="memory://", canonical_url="https://example.org", **behind)


def test_bunny_needs_the_canonical_url() -> None:
    # The default key of a pull zone has no host.
    behind = {"cdn": "bunny", "cdn_zone": "1", "cdn_token": "x"}
    assert "canonical_url" in refusal(**behind, hosts=["example.org", "example.com"])


def test_a_cdn_without_requests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgi_isr.config.cdn._has_requests", lambda: False)
    assert "pip install" in refusal(cdn="varnish", cdn_purge_url="http://127.0.0.1/")


# Stores


def test_an_unknown_scheme_is_told_the_known_ones() -> None:
    message = refusal(store="sqllite:///x.db")
    assert "store" in message
    assert "sqlite" in message


@pytest.mark.parametrize("option", ["colour=blue", "max_bytes=-1", "max_bytes=x"])
def test_a_wrong_option_of_a_store_is_named(option: str, tmp_path: Path) -> None:
    assert option.partition("=")[0] in refusal(store=f"sqlite:///{tmp_path}/x.db?{option}")


def test_a_store_in_a_place_that_cannot_be_is_refused_at_start(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("not a directory")
    message = refusal(store=f"sqlite:///{file}/below/x.db")
    assert "store" in message


def test_a_store_whose_path_is_a_directory_is_refused_at_start(tmp_path: Path) -> None:
    assert "store" in refusal(store=f"sqlite:///{tmp_path}")


def test_a_broken_store_url_in_the_environment_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_STORE", "nowhere://")
    with pytest.raises(ConfigError, match=r"(?i)store: .*nowhere"):
        ISR(APP)


# wrap


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory to import from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WSGI_ISR_STORE", "memory://")
    before = set(sys.modules)
    yield tmp_path  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if name.startswith("wrapped_"):
            del sys.modules[name]


def test_wrap_serves_what_it_names(modules: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    (modules / "wrapped_one.py").write_text(
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [b'wrapped']\n"
    )
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", "60")
    from werkzeug.test import Client

    client = Client(wrap("wrapped_one:app"))
    assert [client.get("/").headers["X-ISR"] for _ in range(2)] == ["MISS", "HIT"]
    assert client.get("/").data == b"wrapped"


def test_wrap_follows_dots_to_an_attribute(modules: Path) -> None:
    (modules / "wrapped_two.py").write_text("class Site:\n    app = staticmethod(lambda e, s: [])\n")
    assert isinstance(wrap("wrapped_two:Site.app"), ISR)


def test_wrap_takes_options(modules: Path) -> None:
    (modules / "wrapped_three.py").write_text("app = lambda environ, start_response: []\n")
    assert isinstance(wrap("wrapped_three:app", revalidate=60), ISR)
    with pytest.raises(ConfigError, match="flavour"):
        wrap("wrapped_three:app", flavour="vanilla")


@pytest.mark.parametrize(
    "target",
    ["wrapped_nowhere:app", "wrapped_nowhere", "", ":", ":app", "wrapped_four:", "a b:app", "wrapped_four.x:app"],
)
def test_a_wrap_target_that_does_not_import_is_named(modules: Path, target: str) -> None:
    (modules / "wrapped_four.py").write_text("app = lambda environ, start_response: []\n")
    with pytest.raises(ConfigError) as caught:
        wrap(target)
    assert target in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["nothing", "app.nothing", "number"])
def test_a_wrap_target_that_is_no_app_is_named(modules: Path, name: str) -> None:
    (modules / "wrapped_five.py").write_text("number = 5\napp = lambda environ, start_response: []\n")
    with pytest.raises(ConfigError) as caught:
        wrap(f"wrapped_five:{name}")
    assert f"wrapped_five:{name}" in str(caught.value) or "5 is not a WSGI application" in str(caught.value)


@pytest.mark.parametrize("fault", ["import wrapped_not_installed", "raise ValueError('no database')", "def (:"])
def test_a_wrap_target_that_fails_to_import_says_why(modules: Path, fault: str) -> None:
    (modules / "wrapped_six.py").write_text(fault + "\n")
    with pytest.raises((ConfigError, ImportError, ValueError, SyntaxError)) as caught:
        wrap("wrapped_six:app")
    chain: BaseException | None = caught.value
    told = ""
    while chain is not None:
        told += str(chain)
        chain = chain.__cause__
    assert any(word in told for word in ("wrapped_not_installed", "no database", "syntax"))
    if isinstance(caught.value, ConfigError):
        assert "wrapped_six" in str(caught.value)


@pytest.mark.parametrize("app", [None, 5, "myapp:app", []])
def test_what_cannot_be_called_is_no_app(app: Any) -> None:
    with pytest.raises((ConfigError, TypeError)):
        ISR(app, revalidate=60, store="memory://")


# The environment and the file


def test_an_option_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, make_site: MakeSite) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", "42")
    site = make_site()
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 42


def test_an_argument_counts_before_the_environment(monkeypatch: pytest.MonkeyPatch, make_site: MakeSite) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", "42")
    site = make_site(revalidate=7)
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 7


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.5", 0.5), ("60", 60), ("hours", 3600), ("false", None), ("False", None)]
)
def test_revalidate_can_be_all_that_it_is_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, make_site: MakeSite, text: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", text)
    site = make_site()
    assert site.visit("/a").label == "MISS"
    assert site.lifetime("/a").revalidate == seconds


def test_lists_numbers_and_sizes_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, make_site: MakeSite, origin: Origin
) -> None:
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", "60")
    monkeypatch.setenv("WSGI_ISR_QUERY", "page, q")
    monkeypatch.setenv("WSGI_ISR_COOKIES", "lang")
    monkeypatch.setenv("WSGI_ISR_STATUSES", "200,302")
    monkeypatch.setenv("WSGI_ISR_MAX_BODY", "1000")
    site = make_site()
    site.visit("/a?q=1&page=2", cookie="lang=de; x=y")
    assert origin.last("/a")["QUERY_STRING"] == "page=2&q=1"
    assert origin.last("/a")["HTTP_COOKIE"] == "lang=de"
    origin.on("/b", answer(b"x", status="302 Found"))
    assert site.visit("/b").label == "MISS"
    origin.on("/c", answer(b"x" * 1001))
    assert site.visit("/c").label == "BYPASS"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WSGI_ISR_REVALIDATE", "soon"),
        ("WSGI_ISR_REVALIDATE", "-1"),
        ("WSGI_ISR_REVALIDATE", "nan"),
        ("WSGI_ISR_REVALIDATE", ""),
        ("WSGI_ISR_EXPIRE", "0"),
        ("WSGI_ISR_LOCK_TIMEOUT", "ten"),
        ("WSGI_ISR_STATUSES", "200 OK"),
        ("WSGI_ISR_MAX_BODY", "-5"),
        ("WSGI_ISR_OTHER_QUERY", "drop"),
        ("WSGI_ISR_BACKGROUND_THREADS", "many"),
        ("WSGI_ISR_CANONICAL_URL", "nowhere"),
    ],
)
def test_an_impossible_value_in_the_environment_is_named_with_its_option(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("WSGI_ISR_STORE", "memory://")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        ISR(APP)
    assert variable.removeprefix("WSGI_ISR_").lower() in str(caught.value).lower()
    assert caught.value.remedy


@pytest.mark.parametrize("variable", ["WSGI_ISR_REVALIDAT", "WSGI_ISR_FLAVOUR", "WSGI_ISR_", "WSGI_ISR__WAIT"])
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("WSGI_ISR_STORE", "memory://")
    monkeypatch.setenv(variable, "60")
    with pytest.raises(ConfigError, match=variable):
        ISR(APP)


def test_expire_below_revalidate_is_refused_across_argument_and_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WSGI_ISR_EXPIRE", "30")
    assert "expire" in refusal(revalidate=60).lower()


def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = tmp_path / "isr.toml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("WSGI_ISR_CONFIG", str(path))
    return path


def test_options_and_rules_come_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_site: MakeSite, origin: Origin
) -> None:
    config_file(
        tmp_path,
        monkeypatch,
        'revalidate = 60\nother_query = "ignore"\n\n[rules]\n"/" = 10\n'
        '"/blog/<slug>" = { revalidate = 3600, query = ["page"], other_query = "bypass" }\n"/off" = 0\n',
    )
    site = make_site()
    for path, seconds in (("/", 10), ("/else?x=1", 60), ("/blog/one?page=2", 3600)):
        site.visit(path)
        assert site.lifetime(path).revalidate == seconds
    assert site.visit("/blog/one?x=2").label == "BYPASS"
    assert site.visit("/off").label == "BYPASS"


def test_the_store_comes_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file(tmp_path, monkeypatch, f'store = "sqlite:///{tmp_path}/of-the-file.db"\nrevalidate = 60\n')
    from werkzeug.test import Client

    isr = ISR(APP)
    Client(isr).get("/")
    isr.close(5)
    assert (tmp_path / "of-the-file.db").exists()


def test_the_environment_counts_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_site: MakeSite
) -> None:
    config_file(tmp_path, monkeypatch, "revalidate = 60\n")
    monkeypatch.setenv("WSGI_ISR_REVALIDATE", "42")
    site = make_site()
    site.visit("/a")
    assert site.lifetime("/a").revalidate == 42


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("revalidat = 60\n", "revalidat"),
        ("revalidate = -1\n", "revalidate"),
        ('revalidate = "soon"\n', "revalidate"),
        ("revalidate = 60\nexpire = 30\n", "expire"),
        ('[rules]\n"/a" = { revalidat = 60 }\n', "revalidat"),
        ('[rules]\n"/a" = -1\n', "/a"),
        ('[rules]\n"/a/<x>" = 1\n"/a/<y>" = 2\n', "/a/<y>"),
        ('[rules]\n"/<" = 1\n', "/<"),
        ("rules = 5\n", "rules"),
        ("revalidate = \n", "isr.toml"),
        ("[rules\n", "isr.toml"),
        ("\x00", "isr.toml"),
        ("[flavour]\nx = 1\n", "flavour"),
        ('bypass = "yes"\n', "bypass"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str) -> None:
    config_file(tmp_path, monkeypatch, text)
    monkeypatch.setenv("WSGI_ISR_STORE", "memory://")
    with pytest.raises(ConfigError) as caught:
        ISR(APP)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_CONFIG", str(tmp_path / "nowhere.toml"))
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        ISR(APP, store="memory://")


def test_a_file_that_is_no_utf8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "isr.toml"
    path.write_bytes(b'store = "\xff"\n')
    monkeypatch.setenv("WSGI_ISR_CONFIG", str(path))
    with pytest.raises(ConfigError, match=r"isr\.toml"):
        ISR(APP, store="memory://")


# The error itself


def test_the_error_is_the_operators_and_tells_its_parts() -> None:
    with pytest.raises(ConfigError) as caught:
        ISR(APP, revalidate=-1, store="memory://")
    error = caught.value
    assert isinstance(error, ISRError)
    assert isinstance(error, ValueError)
    assert error.option == "revalidate"
    assert error.problem
    assert error.remedy


def test_nothing_is_logged_and_nothing_starts_where_the_options_are_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import threading

    before = threading.active_count()
    with caplog.at_level(logging.DEBUG, logger="wsgi_isr"):
        refusal(revalidate=-1)
    assert caplog.records == []
    assert threading.active_count() == before


def test_a_right_set_of_options_is_accepted(tmp_path: Path) -> None:
    ISR(
        APP,
        {
            "/": 10,
            "/blog/<slug>": Rule(
                revalidate=3600,
                expire=86400,
                query=["page"],
                other_query="ignore",
                vary={"Accept-Language": str.lower},
                cookies=("lang",),
                statuses=[200, 404],
                negative_ttl=0,
                render_timeout=5,
                lock_timeout=0,
                max_body=1024,
                bypass=lambda environ: False,
            ),
            "/n/<int:id>": "hours",
            "/for-ever": False,
            "/never/<path:rest>": 0,
        },
        revalidate=60,
        store=f"sqlite:///{tmp_path}/x.db",
        namespace="blog",
        local_cache_bytes=1024 * 1024,
        canonical_url="https://www.example.org",
        ignore_cookies=["_ga*"],
        uncacheable_ttl=10,
        background_threads=2,
        background_queue=10,
        drain_timeout=1,
    )


class Handler:
    """An app whose method is a view of werkzeug."""

    @Request.application
    def __call__(self, request: Request) -> Response:
        return Response(f"at {request.path}")


@Request.application
def view(request: Request) -> Response:
    return Response(f"at {request.path}")


@pytest.mark.parametrize("app", [view, Handler()], ids=["function", "object"])
def test_an_app_made_by_werkzeugs_decorator_is_wrapped(app: Any) -> None:
    assert Client(ISR(app, revalidate=60, store="memory://")).get("/a").text == "at /a"
