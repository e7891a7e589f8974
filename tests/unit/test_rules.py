"""Rules: the pattern that wins, the options of a policy, and rules that are refused at start."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsgi_isr.config.lifetime import PROFILES, Lifetime
from wsgi_isr.config.policy import tags_of
from wsgi_isr.config.rule_set import RuleSet
from wsgi_isr.config.rules import RULE_DEFAULTS, RULE_OPTIONS, Rule
from wsgi_isr.errors import ConfigError


def policy(rule: Any, **site: Any) -> Any:
    return RuleSet({"/x": rule}, Rule(**site)).policies["/x"]


# The rule that wins ----------------------------------------------------------------------------------

SITE = RuleSet(
    {
        "/<path:rest>": 1,
        "/blog/<slug>": 2,
        "/blog/<int:id>": 3,
        "/blog/about": 4,
        "/blog/": 5,
        "/": 6,
        "/blog/<slug>/comments": 7,
        "/shop/<any(red,blue):color>": 8,
        "/shop/<float:price>": 9,
        "/deep/<path:rest>/end": 10,
        "/caf\xe9": 11,
    },
    Rule(),
)


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "/"),
        ("/blog/about", "/blog/about"),
        ("/blog/17", "/blog/<int:id>"),
        ("/blog/hello", "/blog/<slug>"),
        ("/blog/-17", "/blog/<slug>"),
        ("/blog/hello/comments", "/blog/<slug>/comments"),
        ("/blog/", "/blog/"),
        ("/shop/red", "/shop/<any(red,blue):color>"),
        ("/shop/1.5", "/shop/<float:price>"),
        ("/shop/green", "/<path:rest>"),
        ("/deep/a/b/end", "/deep/<path:rest>/end"),
        ("/deep/a/b", "/<path:rest>"),
        ("/caf\xe9", "/caf\xe9"),
        ("/anything/else", "/<path:rest>"),
    ],
)
def test_the_most_specific_pattern_wins_whatever_the_order(path: str, pattern: str) -> None:
    assert SITE.match(path)[0].name == pattern
    backwards = RuleSet([(name, 1) for name in reversed(SITE.policies) if name != "*"], Rule())
    assert backwards.match(path)[0].name == pattern


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/about", "/about", True),
        ("/about", "/about/", False),
        ("/about/", "/about/", True),
        ("/about/", "/about", False),
        ("/blog/<slug>", "/blog/a/", False),
        ("/blog/<slug>", "/blog/", False),
        ("/blog/<slug>/", "/blog/a", False),
        ("/a/b", "/a//b", False),
        ("/About", "/about", False),
    ],
)
def test_a_trailing_slash_and_case_matter(pattern: str, path: str, matches: bool) -> None:
    rules = RuleSet({pattern: 60}, Rule(revalidate=5))
    assert rules.match(path)[0].name == (pattern if matches else "*")


def test_what_no_pattern_matches_gets_the_rule_of_the_site() -> None:
    rules = RuleSet({"/a": 1}, Rule(revalidate=60, render_timeout=5))
    unlisted, _ = rules.match("/b")
    assert (unlisted.name, unlisted.lifetime, unlisted.render_timeout) == ("*", Lifetime(60, None), 5)


@settings(max_examples=300)
@given(st.text(max_size=30) | st.lists(st.sampled_from(["/", "blog", "17", "..", "", "|", "\n", "\x00"])).map("/".join))
@example("/blog/" + "9" * 5000)
@example("/shop/" + "9" * 5000 + ".0")
@example("/blog/\u0663")
@example("//evil.com")
@example("/blog/\n")
@example("|/|")
def test_matching_never_raises_whatever_the_path(path: str) -> None:
    assert SITE.match(path)[0].name in SITE.policies


def test_the_parameters_of_the_url_come_with_the_rule() -> None:
    assert SITE.match("/blog/17")[1] == {"id": 17}
    assert SITE.match("/deep/a/b/end")[1] == {"rest": "a/b"}
    assert SITE.match("/")[1] == {}
    assert RuleSet({}, Rule()).match("/a")[1] == {}


# Options of a policy ----------------------------------------------------------------------------------


def test_a_bare_number_is_a_rule_with_that_revalidate() -> None:
    assert policy(60) == policy(Rule(revalidate=60)) == policy({"revalidate": 60})


def test_a_rule_without_options_has_the_defaults_of_the_contract() -> None:
    plain = policy(60)
    assert (plain.query, plain.other_query, plain.vary, plain.cookies) == (frozenset(), "bypass", {}, ())
    assert plain.statuses == {200, 203, 301, 308, 404, 410}
    assert (plain.negative_ttl, plain.render_timeout, plain.lock_timeout) == (10, 30, 10)
    assert plain.max_body == 8 * 1024 * 1024
    assert plain.bypass is None
    assert plain.lifetime == Lifetime(60, None)
    assert plain.is_never_cached is False


@pytest.mark.parametrize("option", sorted(RULE_DEFAULTS))
def test_an_option_of_the_rule_wins_over_that_of_the_site(option: str) -> None:
    samples: dict[str, tuple[Any, Any]] = {
        "tags": (["a"], ["b"]),
        "query": (["a"], ["b"]),
        "other_query": ("key", "ignore"),
        "vary": (["A"], ["B"]),
        "cookies": (["a"], ["b"]),
        "dynamic_params": (True, False),
        "fallback": (b"own", b"site"),
        "statuses": ([200], [404]),
        "negative_ttl": (1, 2),
        "render_timeout": (1, 2),
        "lock_timeout": (1, 2),
        "max_body": (1, 2),
    }
    own, site = samples[option]
    rule = {"revalidate": 1, "paths": ["/x"]}
    both = getattr(policy({**rule, option: own}, **{option: site}), option)
    assert both == getattr(policy({**rule, option: own}), option)
    inherited = getattr(policy(rule, **{option: site}), option)
    assert inherited == getattr(policy({**rule, option: site}), option)
    assert inherited != both
    unset = getattr(policy(rule), option)
    assert unset != both or option == "dynamic_params"


@pytest.mark.parametrize(
    ("rule", "site", "lifetime"),
    [
        (60, {}, Lifetime(60, None)),
        (False, {}, Lifetime(None, None)),
        (None, {"revalidate": 60}, Lifetime(60, None)),
        ({"render_timeout": 5}, {"revalidate": 60, "expire": 90}, Lifetime(60, 90)),
        (60, {"expire": 90}, Lifetime(60, 90)),
        ("hours", {}, Lifetime(*PROFILES["hours"])),
        ("hours", {"expire": 90}, Lifetime(*PROFILES["hours"])),
        ({"revalidate": "hours", "expire": 5000}, {}, Lifetime(3600, 5000)),
        (None, {"revalidate": "minutes"}, Lifetime(60, 3600)),
        ({"revalidate": 60, "expire": 60}, {}, Lifetime(60, 60)),
        (None, {}, None),
    ],
)
def test_the_lifetime_of_a_page_comes_from_its_rule_then_from_the_site(rule: Any, site: Any, lifetime: Any) -> None:
    assert policy(rule, **site).lifetime == lifetime


def test_own_profiles_stand_beside_the_known_ones() -> None:
    rules = RuleSet({"/a": "news", "/b": "hours"}, Rule(), {**PROFILES, "news": (30, 600)})
    assert rules.policies["/a"].lifetime == Lifetime(30, 600)
    assert rules.policies["/b"].lifetime == Lifetime(3600, 86400)


@pytest.mark.parametrize(("revalidate", "never"), [(0, True), (0.0, True), (False, False), (0.5, False), (60, False)])
def test_only_zero_means_never(revalidate: Any, never: bool) -> None:
    assert policy(revalidate).is_never_cached is never


@pytest.mark.parametrize(("timeout", "lease"), [(0.5, 3), (3, 3), (4, 4), (10, 5), (300, 5)])
def test_a_lease_is_as_long_as_a_render_may_take_within_3_and_5_seconds(timeout: float, lease: float) -> None:
    assert policy({"revalidate": 1, "render_timeout": timeout}).lease == lease


@pytest.mark.parametrize(
    ("rule", "alone"),
    [
        ({}, True),
        ({"query": ["q"], "other_query": "key"}, True),
        ({"vary": ["Accept"]}, False),
        ({"cookies": ["lang"]}, False),
        ({"bypass": bool}, False),
    ],
)
def test_a_policy_knows_whether_the_url_alone_decides(rule: Any, alone: bool) -> None:
    assert policy({"revalidate": 1, **rule}).by_url_alone is alone


def test_declared_headers_are_known_in_lower_case() -> None:
    assert policy({"revalidate": 1, "vary": ["Accept-Language", "x-a"]}).varies_on == {"accept-language", "x-a"}


def test_declared_parameters_are_the_bytes_that_a_url_holds() -> None:
    assert policy({"revalidate": 1, "query": ["caf\xe9"]}).query == {"caf\xc3\xa9"}


@pytest.mark.parametrize("names", [["b", "a"], ["a", "b"], ("a", "b", "a"), {"a", "b"}])
def test_the_order_in_which_names_are_declared_makes_no_difference(names: Any) -> None:
    declared = policy({"revalidate": 1, "cookies": names, "vary": names})
    assert declared.cookies == ("a", "b")
    assert list(declared.vary) == ["a", "b"]


# Tags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "tags", "params", "result"),
    [
        ("/a", ["posts"], {}, ("posts",)),
        ("/<slug>", ["posts", "post:{slug}"], {"slug": "x y"}, ("posts", "post:x y")),
        ("/<int:id>", ["post:{id}"], {"id": 17}, ("post:17",)),
        ("/<slug>", ["{{slug}}"], {"slug": "x"}, ("{slug}",)),
        ("/<slug>", ["a,b"], {"slug": "x"}, ("a,b",)),
        ("/<slug>", ["post:{slug}"], {"slug": "{0}{slug}"}, ("post:{0}{slug}",)),
        ("/<slug>", lambda params: [f"t:{params['slug']}"], {"slug": "x"}, ("t:x",)),
        ("/<slug>", lambda params: [], {"slug": "x"}, ()),
    ],
)
def test_the_tags_of_a_page_are_made_from_its_url(pattern: str, tags: Any, params: Any, result: Any) -> None:
    rules = RuleSet({pattern: {"revalidate": 1, "tags": tags}}, Rule())
    assert tags_of(rules.policies[pattern], params) == result


@pytest.mark.parametrize("tag", ["{nope}", "{", "}", "{0}", "{}", "{slug.__class__}", "{slug[0]}"])
def test_a_tag_that_its_pattern_cannot_fill_is_refused_at_start(tag: str) -> None:
    with pytest.raises(ConfigError, match="tags") as caught:
        RuleSet({"/<slug>": {"revalidate": 1, "tags": [tag]}}, Rule())
    assert repr(tag) in str(caught.value)


def test_a_callable_that_gives_something_else_than_tags_is_said() -> None:
    rules = RuleSet({"/a": {"revalidate": 1, "tags": lambda params: "posts"}}, Rule())
    with pytest.raises(ConfigError, match=r"/a.*tags"):
        tags_of(rules.policies["/a"], {})


# Rules that are refused at start ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "blog",
        "",
        "http://host/a",
        "/<",
        "/<a",
        "/<>",
        "/<1a>",
        "/<a>/<a>",
        "/<a><a>",
        "/<nope:a>",
        "/<int(nope=1):a>",
        "/<string(length='x'):a>",
        "/<string(length=99999999999):a>",
        "/<string(minlength=5, maxlength=2):a>",
        "/<any(a b):x>",
        None,
        7,
        ("/a",),
    ],
)
def test_a_pattern_that_is_none_is_refused_by_name(pattern: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet([(pattern, 60)], Rule())
    assert repr(pattern) in caught.value.option
    assert caught.value.remedy


@settings(max_examples=300)
@given(st.text("/<>:()=,ab1 'int|", max_size=14))
def test_any_pattern_is_either_taken_or_a_config_error(pattern: str) -> None:
    try:
        rules = RuleSet({"/" + pattern: 60}, Rule())
    except ConfigError:
        return
    assert rules.match("/a/b")[0].name in rules.policies


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/a"),
        ("/blog/<slug>", "/blog/<name>"),
        ("/blog/<int:id>/x", "/blog/<int:number>/x"),
        ("/<string(length=2):a>", "/<string(length=2):b>"),
        ("/<x>", "/<string:y>"),
        ("/<x>", "/<default:y>"),
    ],
)
def test_two_patterns_that_match_the_same_paths_are_refused_and_both_named(one: str, other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet([(one, 1), (other, 2)], Rule())
    assert repr(other) in caught.value.option
    assert repr(one) in caught.value.problem


@pytest.mark.parametrize(
    ("one", "other"),
    [("/a", "/a/"), ("/<a>", "/<int:a>"), ("/<string(length=2):a>", "/<string(length=3):a>"), ("/<a>", "/<path:a>")],
)
def test_two_patterns_that_only_overlap_are_taken(one: str, other: str) -> None:
    assert len(RuleSet([(one, 1), (other, 2)], Rule()).policies) == 3


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (-1, "revalidate"),
        (True, "revalidate"),
        ("monthly", "revalidate"),
        ("60", "revalidate"),
        ([60], "revalidate"),
        ({"revalidate": 60, "expire": 59}, "expire"),
        ({"revalidate": False, "expire": 60}, "expire"),
        ({"revalidate": "hours", "expire": 60}, "expire"),
        ({"revalidate": 60, "expire": 0}, "expire"),
        ({"revalidate": 60, "render_timeout": "30"}, "render_timeout"),
        ({"revalidate": 60, "query": "page"}, "query"),
        ({"revalidate": 60, "query": ["\ud800"]}, "query"),
        ({"revalidate": 60, "statuses": [500]}, "statuses"),
        ({"revalidaet": 60}, "revalidaet"),
        ({7: 60}, "7"),
    ],
)
def test_an_impossible_rule_is_refused_naming_pattern_and_option(rule: Any, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RuleSet({"/blog/<slug>": rule}, Rule())
    assert "/blog/<slug>" in str(caught.value)
    assert named in str(caught.value)
    assert caught.value.remedy


def test_an_unknown_option_of_a_rule_suggests_the_right_one() -> None:
    with pytest.raises(ConfigError, match="did you mean revalidate"):
        RuleSet({"/a": {"revaldate": 60}}, Rule())


def test_a_site_whose_pages_would_expire_before_they_are_due_is_refused() -> None:
    with pytest.raises(ConfigError, match="expire"):
        RuleSet({}, Rule(revalidate=60, expire=30))


def test_a_rule_that_never_caches_may_stand_below_any_expire() -> None:
    assert policy(0, expire=30).is_never_cached


def test_every_option_of_a_rule_can_be_given_for_the_site() -> None:
    assert set(RULE_OPTIONS) == {*RULE_DEFAULTS, "revalidate", "expire", "bypass", "paths"}
