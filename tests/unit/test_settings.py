"""The option table in its three forms: constructor, environment, TOML file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from wsgi_isr.config.lifetime import Lifetime
from wsgi_isr.config.rules import RULE_OPTIONS
from wsgi_isr.config.settings import ENV_PREFIX, OPTIONS, SITE_OPTIONS, Config, option_table
from wsgi_isr.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "options.md"


def is_mine(environ: Any) -> bool:
    return bool(environ)


class Sample(NamedTuple):
    """One value of an option in each form (``None``: the form cannot have it), and the parsed value."""

    given: Any
    text: str | None
    toml: str | None
    result: Any


SAMPLES = {
    "revalidate": Sample(7, "7", "7", Lifetime(7, None)),
    "expire": Sample(99.5, "99.5", "99.5", 99.5),
    "tags": Sample(["a", "b"], "a,b", '["a", "b"]', ("a", "b")),
    "query": Sample(["q", "page"], "q,page", '["q", "page"]', {"q", "page"}),
    "other_query": Sample("key", "key", '"key"', "key"),
    "vary": Sample(["X-A"], "X-A", '["X-A"]', {"X-A": None}),
    "cookies": Sample(["lang"], "lang", '["lang"]', ("lang",)),
    "paths": Sample(["/a", "/a?q=1"], "/a,/a?q=1", '["/a", "/a?q=1"]', ("/a", "/a?q=1")),
    "dynamic_params": Sample(True, "yes", "true", True),
    "fallback": Sample("blocking", "blocking", '"blocking"', "blocking"),
    "statuses": Sample([200, 404], "200,404", "[200, 404]", {200, 404}),
    "negative_ttl": Sample(3, "3", "3", 3),
    "render_timeout": Sample(5.5, "5.5", "5.5", 5.5),
    "lock_timeout": Sample(0, "0", "0", 0),
    "max_body": Sample(1 << 20, "1MiB", "1048576", 1 << 20),
    "bypass": Sample(is_mine, None, None, is_mine),
    "store": Sample("memory://", "memory://", '"memory://"', "memory://"),
    "namespace": Sample("shop", "shop", '"shop"', "shop"),
    "release": Sample("v2", "v2", '"v2"', "v2"),
    "adopt_release": Sample("v1", "v1", '"v1"', "v1"),
    "development": Sample("cache", "cache", '"cache"', "cache"),
    "coherence": Sample(0, "0", "0", 0),
    "invalidate_on_write": Sample(False, "off", "false", False),
    "journal": Sample("j.log", "j.log", '"j.log"', "j.log"),
    "local_cache_bytes": Sample(1 << 20, "1m", "1048576", 1 << 20),
    "canonical_url": Sample(
        "https://example.com", "https://example.com", '"https://example.com"', "https://example.com"
    ),
    "hosts": Sample(
        ["Example.com:443", "*.a.test:8000"],
        "Example.com, *.a.test:8000",
        '["Example.com", "*.a.test:8000"]',
        ("example.com", "*.a.test:8000"),
    ),
    "ignore_cookies": Sample(["_ga*", "x"], "_ga*, x", '["_ga*", "x"]', ("_ga*", "x")),
    "anonymous": Sample(is_mine, None, None, is_mine),
    "uncacheable_ttl": Sample(5, "5", "5", 5),
    "background": Sample("threads", "threads", '"threads"', "threads"),
    "renderers": Sample(3, "3", "3", 3),
    "max_renders": Sample(50, "50", "50", 50),
    "background_threads": Sample(2, "2", "2", 2),
    "background_queue": Sample(9, "9", "9", 9),
    "drain_timeout": Sample(0, "0", "0", 0),
    "cdn": Sample("generic", "generic", '"generic"', "generic"),
    "cdn_zone": Sample("zone-1", "zone-1", '"zone-1"', "zone-1"),
    "cdn_token": Sample("t0ken", "t0ken", '"t0ken"', "t0ken"),
    "cdn_purge_url": Sample(
        ["https://a.test/p", "https://b.test"],
        "https://a.test/p, https://b.test",
        '["https://a.test/p", "https://b.test"]',
        ("https://a.test/p", "https://b.test"),
    ),
    "secret": Sample("s3cret", "s3cret", '"s3cret"', "s3cret"),
    "signing_key": Sample("k" * 16, "k" * 16, f'"{"k" * 16}"', "k" * 16),
    "off": Sample("stale", "stale", '"stale"', "serve-stale"),
    "debug": Sample(True, "1", "true", True),
    "profiles": Sample({"news": (30, 600)}, None, "{ news = [30, 600] }", {"news": (30, 600)}),
}


#: Options that stand beside another one, which means nothing by itself.
BESIDE: dict[str, dict[str, str]] = {
    "expire": {"revalidate": "1"},
    "cdn": {"cdn_purge_url": "https://a.test/"},
    "cdn_zone": {"cdn": "fastly", "cdn_token": "t"},
    "cdn_token": {"cdn": "generic", "cdn_purge_url": "https://a.test/"},
    "cdn_purge_url": {"cdn": "varnish"},
}


def value_of(config: Config, name: str) -> Any:
    if name in SITE_OPTIONS:
        return getattr(config.settings, name)
    unlisted = config.rules.policies["*"]
    if name == "revalidate":
        return unlisted.lifetime
    if name == "expire":
        assert unlisted.lifetime is not None
        return unlisted.lifetime.expire
    return getattr(unlisted, name)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that writes a file and returns the environment that names it."""

    def write(text: str) -> dict[str, str]:
        file = tmp_path / "isr.toml"
        file.write_text(text, encoding="utf-8")
        return {ENV_PREFIX + "CONFIG": str(file)}

    return write


Toml = Callable[[str], dict[str, str]]


def test_there_is_a_sample_of_every_option() -> None:
    assert set(SAMPLES) == set(OPTIONS) == {*RULE_OPTIONS, *SITE_OPTIONS}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_option_can_be_given_to_the_constructor(name: str) -> None:
    beside = {"revalidate": 1} if name == "expire" else BESIDE.get(name, {})
    config = Config.load(None, {name: SAMPLES[name].given, **beside}, {})
    assert value_of(config, name) == SAMPLES[name].result


@pytest.mark.parametrize("name", SAMPLES)
def test_every_option_that_can_be_written_as_text_is_a_variable(name: str) -> None:
    text = SAMPLES[name].text
    variable = ENV_PREFIX + name.upper()
    if text is None:
        with pytest.raises(ConfigError, match=variable):
            Config.load(None, {}, {variable: "x"})
    else:
        beside = {ENV_PREFIX + other.upper(): value for other, value in BESIDE.get(name, {}).items()}
        assert value_of(Config.load(None, {}, {variable: text, **beside}), name) == SAMPLES[name].result


@pytest.mark.parametrize("name", SAMPLES)
def test_every_option_that_is_data_can_stand_in_a_file(name: str, toml: Toml) -> None:
    text = SAMPLES[name].toml
    if text is None:
        with pytest.raises(ConfigError, match=name):
            Config.load(None, {}, toml(f'{name} = "x"'))
    else:
        beside = {"revalidate": 1} if name == "expire" else BESIDE.get(name, {})
        extra = "".join(f"{other} = {json.dumps(value)}\n" for other, value in beside.items())
        assert value_of(Config.load(None, {}, toml(f"{extra}{name} = {text}")), name) == SAMPLES[name].result


@pytest.mark.parametrize("name", RULE_OPTIONS)
def test_every_option_of_a_rule_can_stand_in_the_rules_of_a_file(name: str, toml: Toml) -> None:
    text = SAMPLES[name].toml
    extra = "" if name == "revalidate" else "revalidate = 1, "
    rules = f'[rules]\n"/a" = {{ {extra}{name} = {text if text is not None else json.dumps("x")} }}'
    if text is None:
        with pytest.raises(ConfigError, match=name):
            Config.load(None, {}, toml(rules))
    else:
        policy = Config.load(None, {}, toml(rules)).rules.policies["/a"]
        found = {"revalidate": policy.lifetime, "expire": policy.lifetime and policy.lifetime.expire}
        assert found.get(name, getattr(policy, name, None)) == SAMPLES[name].result


def test_the_constructor_wins_over_the_environment_and_that_over_the_file(toml: Toml) -> None:
    environ = toml('namespace = "file"\nrender_timeout = 1\nlock_timeout = 1')
    environ |= {"WSGI_ISR_NAMESPACE": "environment", "WSGI_ISR_RENDER_TIMEOUT": "2"}
    config = Config.load(None, {"namespace": "constructor"}, environ)
    assert config.settings.namespace == "constructor"
    assert (config.rules.policies["*"].render_timeout, config.rules.policies["*"].lock_timeout) == (2, 1)


def test_an_argument_that_is_none_was_not_given() -> None:
    config = Config.load(None, {"namespace": None, "render_timeout": None}, {"WSGI_ISR_NAMESPACE": "shop"})
    assert config.settings.namespace == "shop"
    assert config.rules.policies["*"].render_timeout == 30


def test_without_anything_every_option_has_its_default() -> None:
    settings = Config.load(None, None, {}).settings
    assert settings.store == "sqlite:///.wsgi_isr/store.db"
    assert (settings.namespace, settings.local_cache_bytes, settings.canonical_url) == ("default", 64 << 20, None)
    assert (settings.background_threads, settings.background_queue) == (4, 256)
    assert (settings.uncacheable_ttl, settings.drain_timeout) == (60, 10)
    assert Config.load(None, None, {}).rules.policies["*"].lifetime is None


def test_variables_of_others_are_nobodys_business() -> None:
    Config.load(None, {}, {"PATH": "/bin", "WSGI_ISRX": "1", "MY_WSGI_ISR_STORE": "x", "WSGI_ISR_CONFIG": ""})


def test_the_process_environment_is_read_where_no_other_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSGI_ISR_NAMESPACE", "from-outside")
    assert Config.load().settings.namespace == "from-outside"


def test_rules_of_the_constructor_take_the_place_of_those_of_the_file(toml: Toml) -> None:
    environ = toml('[rules]\n"/file" = 1')
    assert set(Config.load({"/own": 2}, {}, environ).rules.policies) == {"/own", "*"}
    assert set(Config.load(None, {}, environ).rules.policies) == {"/file", "*"}


def test_rules_in_a_file_have_every_form(toml: Toml) -> None:
    environ = toml(
        '[rules]\n"/" = 10\n"/h" = "hours"\n"/f" = false\n"/t" = { revalidate = 5, query = ["q"] }\n"/n" = 0'
    )
    policies = Config.load(None, {}, environ).rules.policies
    lifetimes = {name: policy.lifetime for name, policy in policies.items() if name not in ("*", "/n")}
    assert lifetimes == {
        "/": Lifetime(10, None),
        "/h": Lifetime(3600, 86400),
        "/f": Lifetime(None, None),
        "/t": Lifetime(5, None),
    }
    assert policies["/t"].query == {"q"}
    assert policies["/n"].is_never_cached


def test_own_profiles_are_known_to_rules_wherever_they_come_from(toml: Toml) -> None:
    environ = toml('[profiles]\nnews = [30, 600]\n[rules]\n"/" = "news"')
    assert Config.load(None, {}, environ).rules.policies["/"].lifetime == Lifetime(30, 600)


# Errors at start --------------------------------------------------------------------------------------


def test_an_unknown_argument_is_named_with_the_nearest_option() -> None:
    with pytest.raises(ConfigError, match=r"namspace: unknown option \(did you mean namespace"):
        Config.load(None, {"namspace": "x"}, {})


def test_an_unknown_variable_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"WSGI_ISR_STOER: unknown variable .*WSGI_ISR_STORE"):
        Config.load(None, {}, {"WSGI_ISR_STOER": "memory://"})


def test_an_unknown_name_in_a_file_is_named_with_file_and_nearest_option(toml: Toml) -> None:
    with pytest.raises(ConfigError, match=r"isr\.toml: revalidat: .*did you mean revalidate"):
        Config.load(None, {}, toml("revalidat = 60"))


def test_an_unknown_option_of_a_rule_in_a_file_is_named_with_its_pattern(toml: Toml) -> None:
    with pytest.raises(ConfigError, match=r"/a.*tags2"):
        Config.load(None, {}, toml('[rules]\n"/a" = { tags2 = 1 }'))


BAD: list[tuple[str, Any, str | None, str | None]] = [
    ("revalidate", -1, "-1", "-1"),
    ("revalidate", "nope", "nope", '"nope"'),
    ("expire", 0, "0", "0"),
    ("render_timeout", float("inf"), "inf", "inf"),
    ("lock_timeout", float("nan"), "nan", "nan"),
    ("query", "page", None, '"page"'),
    ("other_query", "drop", "drop", '"drop"'),
    ("statuses", [500], "500", "[500]"),
    ("max_body", 0, "0", "0"),
    ("max_body", "big", "big", '"big"'),
    ("namespace", "", "", '""'),
    ("local_cache_bytes", 1.5, "1.5", "1.5"),
    ("background_threads", 0, "0", "0"),
    ("background_threads", True, "\xb2", "true"),
    ("background_queue", -1, "-1", "-1"),
    ("drain_timeout", -1, "-1", "-1"),
    ("uncacheable_ttl", 0, "0", "0"),
    ("ignore_cookies", "x", None, '"x"'),
    ("hosts", ["https://a.test"], "https://a.test", '["https://a.test"]'),
    ("hosts", ["*"], "*", '["*"]'),
    ("profiles", {"a": 60}, None, "{ a = 60 }"),
    ("profiles", {"a": (60, 30)}, None, "{ a = [60, 30] }"),
    ("profiles", {"a": (0, 30)}, None, "{ a = [0, 30] }"),
    ("profiles", ["a"], None, '["a"]'),
    *[
        ("canonical_url", url, url, json.dumps(url))
        for url in (
            "example.com",
            "ftp://example.com",
            "https://",
            "https://example.com/",
            "https://example.com/path",
            "https://user:secret@example.com",
            "https://exam ple.com",
            "https://example.com?x=1",
            "https://?x",
            "https://example.com#top",
            "https://example.com:999999",
            "https://example.com:",
            "https://[::1",
        )
    ],
]


@pytest.mark.parametrize(("name", "given", "text", "in_file"), BAD)
def test_an_impossible_value_is_refused_by_name_in_every_face(
    name: str, given: Any, text: str | None, in_file: str | None, toml: Toml
) -> None:
    faces: list[tuple[dict[str, Any], dict[str, str]]] = [({name: given}, {})]
    if text is not None:
        faces.append(({}, {ENV_PREFIX + name.upper(): text}))
    if in_file is not None:
        faces.append(({}, toml(f"{name} = {in_file}")))
    for options, environ in faces:
        with pytest.raises(ConfigError) as caught:
            Config.load(None, options, environ)
        assert name in str(caught.value).lower()
        assert caught.value.remedy


@pytest.mark.parametrize("rules", [7, "ab", ["ab"], [("/a", 1, 2)], [7]])
def test_rules_that_are_no_mapping_are_refused(rules: Any) -> None:
    with pytest.raises(ConfigError, match="rule"):
        Config.load(rules, {}, {})


def test_rules_may_be_pairs() -> None:
    assert Config.load(iter([("/a", 1)]), {}, {}).rules.policies["/a"].lifetime == Lifetime(1, None)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"WSGI_ISR_CONFIG=.*none\.toml: cannot be read: No such file") as caught:
        Config.load(None, {}, {ENV_PREFIX + "CONFIG": missing})
    assert caught.value.remedy


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(None, {}, {ENV_PREFIX + "CONFIG": str(tmp_path)})


@pytest.mark.parametrize("content", [b"revalidate = ", b"\xff", b"a = 1\na = 2", b'rules = 7\n"/" = 1', b"rules = 7"])
def test_a_file_that_makes_no_sense_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml") as caught:
        Config.load(None, {}, {ENV_PREFIX + "CONFIG": str(file)})
    assert caught.value.remedy


# The reference ----------------------------------------------------------------------------------------


def test_the_table_names_every_option_with_meaning_value_and_default() -> None:
    rows = option_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [*RULE_OPTIONS, *SITE_OPTIONS]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4
        assert all(cells)


def test_the_reference_shows_the_table_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("<!-- options:start -->")[2].partition("<!-- options:end -->")[0]
    assert shown.strip() == option_table().strip()


@pytest.mark.parametrize("value", ["", "k" * 15, b"k" * 16, 1234567890123456, ["k" * 16]])
def test_a_signing_key_that_can_be_guessed_is_refused_and_never_shown(value: Any) -> None:
    with pytest.raises(ConfigError, match="token_urlsafe") as caught:
        Config.load(None, {"signing_key": value}, {})
    assert caught.value.option == "signing_key"
    assert "kkkk" not in str(caught.value)
    assert "1234" not in str(caught.value)
