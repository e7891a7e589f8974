"""Explain one URL: match, look up and judge as for a request, and change nothing.

The steps are those of :class:`.exchange.Exchange`, with the same functions. A look-up without effects is
:mod:`wsgi_isr.cache.inspection`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from ..cache.entry import Content, HitForMiss
from ..cache.inspection import Inspection, TagState
from ..cache.switch import PASS, SERVE_STALE, SWITCHED_OFF, SWITCHED_STALE
from ..cache.task import Passed
from ..cache.timeline import TimelineEvent
from ..cache.verdict import Expired, Fresh, Stale, Uncacheable, Validity
from ..config.lifetime import Lifetime
from ..config.origin import Site, site_of_url
from ..config.policy import UNLISTED, Policy
from ..config.settings import HOST, Config
from ..data.active_engine import activate
from ..engine import Engine
from ..errors import ConfigError
from ..observe.explanation import Explanation, KeyParts, Line, Lock, Node, RuleMatch, StoredPage, Tag
from ..observe.reasons import reason
from ..pages.bots import is_crawler
from ..pages.listed_paths import Absent
from ..pages.request_key import RENDER, PageKey, canonical, decoded, public_path, tag_names_of_page
from ..pages.resolver import Page, Pages

#: The most characters of a value that is shown.
MAX_SHOWN = 500
#: The most lines of a timeline.
MAX_LINES = 40


class Decision(NamedTuple):
    """The answer that a request would get now.

    :param label: the value of ``X-ISR``.
    :param reason: a token of :mod:`wsgi_isr.observe.reasons`.
    :param then: the consequence.
    """

    label: str
    reason: str
    then: str = ""


_OFF = Decision("BYPASS", SWITCHED_OFF, "The app answers the request.")


class Question(NamedTuple):
    """One URL of one app, and the parts of a request for it."""

    engine: Engine
    pages: Pages
    config: Config
    method: str
    environ: dict[str, Any]


def explain(
    engine: Engine,
    pages: Pages,
    config: Config,
    path: str,
    method: str,
    headers: Mapping[str, str] | None,
    site: Site | None,
) -> Explanation:
    """Return the explanation of a request; the parameters are those of :meth:`wsgi_isr.ISR.explain`."""
    url_site, path = split_url(path)
    environ = request_for(pages, path, method, headers or {}, site or url_site)
    question = Question(engine, pages, config, method.upper(), environ)
    try:
        with activate(engine):
            draft = engine.drafts.holds(environ)
            found = pages.resolve(environ, engine.tag_versions.epochs, draft)
            if isinstance(found, Page):
                return _of_page(question, found)
            if isinstance(found, Absent) and engine.tag_versions.switch.peek(found.rule) == PASS:
                return _of_no_page(question, _OFF)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"[:MAX_SHOWN]
        return _of_no_page(question, Decision("BYPASS", "internal-error"))._replace(problem=problem)
    if isinstance(found, Absent):
        return _of_no_page(question, Decision("HIT", "not-listed", "The client gets a 404 without a call of the app."))
    assert isinstance(found, Passed)
    then = ""
    if found.written is not None:
        then = f"If the app answers with 2xx or 3xx, {found.written} is invalidated."
    return _of_no_page(question, Decision("BYPASS", found.reason, then or "The app answers the request."))


# The request ------------------------------------------------------------------------------------------


def split_url(url: str) -> tuple[Site | None, str]:
    """Return the site and the path, with its query, of a URL or a path.

    :raises ConfigError: it is neither.
    """
    try:
        url.encode("utf-8")
    except (AttributeError, UnicodeError):  # no text, or bytes of a command line that are no UTF-8
        raise ConfigError("URL", f"{url!r} is no URL", "write https://example.com/blog/a, or /blog/a") from None
    if "://" not in url.partition("?")[0]:
        return None, url
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    host, question, query = host.partition("?")
    if scheme not in ("http", "https") or not HOST.match(host.lower()):
        raise ConfigError("URL", f"{url!r} is no URL", "write https://example.com/blog/a, or /blog/a")
    return site_of_url(f"{scheme}://{host}"), f"/{path}{question}{query}".partition("#")[0]


def request_for(pages: Pages, path: str, method: str, headers: Mapping[str, str], site: Site | None) -> dict[str, Any]:
    """Return the environ of the request that is explained.

    :raises ConfigError: ``path`` is no path.
    """
    known = pages.sites_of(path)
    if site is None:
        site = known[0]
    elif not site.script:
        # The mount point of a known site with this host counts.
        site = next((one for one in known if one[:2] == site[:2]), site)
    public = pages.path_below(path, site)
    environ = canonical(PageKey(*site, public.encode("utf-8").decode("latin-1")))
    del environ[RENDER]
    environ["REQUEST_METHOD"] = method.upper()
    environ["QUERY_STRING"] = path.partition("?")[2].encode("utf-8").decode("latin-1")
    for name, value in headers.items():
        variable = name.upper().replace("-", "_")
        environ[variable if variable in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{variable}"] = value
    return environ


# A request for no page --------------------------------------------------------------------------------


def _of_no_page(question: Question, decision: Decision) -> Explanation:
    said = reason(decision.reason)
    settings, store = question.config.settings, question.engine.store
    return Explanation(
        _url(question.environ, frozenset()),
        question.method,
        decision.label,
        decision.reason,
        said.text,
        decision.then,
        said.remedy,
        _rule(question),
        store=store.location,
        namespace=settings.namespace,
        release=settings.release or "",
        now=question.engine.clock(),
    )


def _rule(question: Question) -> RuleMatch | None:
    """Return the rule that matches the path, and why."""
    rules = question.config.rules
    try:
        policy, found = rules.match(decoded(question.environ["PATH_INFO"]) or "/")
    except UnicodeError:
        return None
    count = len(rules.policies) - 1
    none = f"none of {count} patterns matches" if count > 1 else "the only pattern does not match"
    if policy.name != UNLISTED:
        why = f"the most specific match of {count} patterns" if count > 1 else "the only pattern, and it matches"
    elif policy.has_no_rule:
        why = f"{none}, and there is no revalidate= for other pages"
    elif count:
        why = f"{none}: the options of the site hold"
    else:
        why = "there are no patterns: the options of the site hold"
    return RuleMatch(policy.name, why, {name: str(value)[:MAX_SHOWN] for name, value in found.items()})


def _url(environ: Mapping[str, Any], in_key: frozenset[str]) -> str:
    """Return the URL, without the values of query parameters that are not part of the key."""
    path = _text(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
    pairs = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, encoding="latin-1")
    query = "&".join(f"{_text(name)}={_text(value) if name in in_key else '...'}" for name, value in pairs)
    return f"{environ['wsgi.url_scheme']}://{environ['HTTP_HOST']}{path}{'?' if query else ''}{query}"[:4096]


def _text(latin: str) -> str:
    """Return bytes held as latin-1 as text."""
    return latin.encode("latin-1", "replace").decode("utf-8", "backslashreplace")


# A request for a page ---------------------------------------------------------------------------------


def _of_page(question: Question, page: Page) -> Explanation:
    engine, policy, key = question.engine, page.policy, page.key

    def names() -> list[str]:
        return tag_names_of_page(key, policy, question.config.rules)

    found = engine.inspector.inspect(page.task, names)
    lock = _lock(found, engine.clock())
    decision = _decide(question, page, found, lock)
    said = reason(decision.reason)
    names_in_key = frozenset(name for name, _ in key.query)
    sent = parse_qsl(question.environ["QUERY_STRING"], keep_blank_values=True, encoding="latin-1")
    parts = KeyParts(
        key.scheme,
        key.host,
        public_path(key.script, key.path),
        tuple((_text(name), _text(value)[:MAX_SHOWN]) for name, value in key.query),
        tuple((name, value[:MAX_SHOWN]) for name, value in key.headers),
        tuple(name for name, _ in key.cookies),
        tuple(dict.fromkeys(_text(name) for name, _ in sent if name not in names_in_key)),
    )
    return _of_no_page(question, decision)._replace(
        url=_url(question.environ, names_in_key),
        why=said.text,
        key=parts,
        stored=_stored(found, policy, engine.clock()),
        tags=tuple(map(_tag, found.tags)),
        lock=lock,
        nodes=tuple(Node(*pair) for pair in found.nodes),
        timeline=_timeline(found),
        problem=found.problem,
    )


def _decide(question: Question, page: Page, found: Inspection, lock: Lock) -> Decision:
    """Return the answer that :meth:`.Cache.get` would give, in its order."""
    cached, verdict, validity = found.cached, found.judged.verdict, found.judged.validity
    mode = question.engine.tag_versions.switch.peek(page.task.rule)
    if mode == PASS:
        return _OFF
    if cached is not None and isinstance(cached.entry.content, Content) and not page.may_serve(cached.entry.content):
        return Decision("BYPASS", "cookie", "The app answers the request.")
    label, renews = found.judged.label, mode != SERVE_STALE
    if not renews and isinstance(verdict, (Stale, Expired)):
        return Decision(label("STALE"), SWITCHED_STALE, "No render begins.")
    if isinstance(verdict, Fresh):
        return Decision(label("HIT"), "fresh" if validity is Validity.VALID else "degraded")
    if isinstance(verdict, Stale):
        token = "stale-age" if validity is Validity.VALID else "stale-tag"
        token = "degraded" if validity is Validity.UNKNOWN else "stale-release" if cached and cached.adopted else token
        return Decision(label("STALE"), token, _in_background(lock, found))
    if isinstance(verdict, Uncacheable):
        again = " A background render finds out whether it may be stored now." if verdict.due and renews else ""
        return Decision("BYPASS", verdict.reason, f"The app answers each request.{again}")
    if isinstance(verdict, Expired):
        return _decide_expired(page, found, lock)
    return _decide_missing(question, page, found, lock)


def _decide_expired(page: Page, found: Inspection, lock: Lock) -> Decision:
    cached, validity = found.cached, found.judged.validity
    assert cached is not None
    is_invalidated = validity is Validity.EXPIRED
    is_kept = found.lock == "back-off" and (found.counts_backoff or not is_invalidated)
    if is_kept or found.is_in_backoff_here:
        return Decision(found.judged.label("STALE-IF-ERROR"), "back-off", f"The last good page is served.{_due(lock)}")
    expire = cached.entry.expire
    is_old = expire is not None and cached.entry.age(found.at) >= expire
    token = "expired-tag" if is_invalidated else "expired-age" if is_old else "evicted"
    return Decision("EXPIRED", token, _in_front(page, lock) + " If it fails, the last good page is served.")


def _decide_missing(question: Question, page: Page, found: Inspection, lock: Lock) -> Decision:
    if found.problem and found.lock == "unknown":
        return Decision("MISS", "store-away")
    token = "purged" if found.cached is not None else "missing"
    if found.lock == "back-off" and not page.task.limits.ignore_backoff:
        return Decision("MISS", "back-off", "The app answers the request." + _due(lock))
    is_backing_off = found.lock == "back-off"
    agent = question.environ.get("HTTP_USER_AGENT", "")
    if page.policy.has_shell and not is_backing_off and not is_crawler(agent):
        return Decision("MISS", "shell", _in_background(lock, found))
    return Decision("MISS", token, _in_front(page, lock))


def _in_background(lock: Lock, found: Inspection) -> str:
    if lock.is_held_here:
        return "This process regenerates it now."
    if lock.state == "held":
        return "Another process regenerates it now."
    if lock.state == "back-off" or found.is_in_backoff_here:
        return "The last render failed: no render begins now." + _due(lock)
    return "A render begins in the background."


def _in_front(page: Page, lock: Lock) -> str:
    wait = page.task.limits.wait
    if lock.is_held_here or lock.state == "held":
        where = "This process" if lock.is_held_here else "Another process"
        return f"{where} renders the page: the client waits for it, at most {wait:g} s (lock_timeout)."
    return "The client waits for a render."


def _due(lock: Lock) -> str:
    return f" The next attempt is due in {lock.retry_in:.0f} s." if lock.retry_in is not None else ""


def _lock(found: Inspection, now: float) -> Lock:
    failed = next((event for event in reversed(found.events) if event.kind == "failed"), None)
    is_backing_off = found.lock == "back-off"
    retry_in = max(0.0, failed.at + failed.seconds - now) if failed is not None and is_backing_off else None
    return Lock(
        found.lock,
        found.is_rendering_here,
        found.failures,
        retry_in,
        failed.detail if failed is not None else "",
        failed.at if failed is not None else None,
    )


def _stored(found: Inspection, policy: Policy, now: float) -> StoredPage | None:
    if found.cached is None:
        return None
    entry = found.cached.entry
    content = entry.content
    render = next((event for event in reversed(found.events) if event.kind in ("rendered", "refused")), None)
    is_refused = isinstance(content, HitForMiss)
    source = "uncacheable_ttl" if is_refused else render.source if render is not None else ""
    if not source and policy.lifetime == Lifetime(entry.revalidate, entry.expire):
        source = "rule"
    return StoredPage(
        found.source,
        content.status if isinstance(content, Content) else "",
        content.reason if isinstance(content, HitForMiss) else "",
        len(content.body) if isinstance(content, Content) else 0,
        entry.created,
        entry.age(now),
        entry.revalidate,
        entry.expire,
        source,
        found.judged.validity.name.lower(),
        tuple(map(_name_of_data, render.data)) if render is not None and not is_refused else (),
    )


def _name_of_data(key: str) -> str:
    """Return the name of a cached function, from the text of its key. Arguments may be secret, and are not shown."""
    try:
        return str(json.loads(key)[0])
    except Exception:  # the record has only the beginning of a long key
        return key.lstrip('["').partition('"')[0][:MAX_SHOWN]


def _tag(tag: TagState) -> Tag:
    last = tag.invalidated[-1] if tag.invalidated else None
    return Tag(
        tag.name,
        tag.node,
        tag.validity.name.lower() if tag.validity is not None else "",
        last.at if last is not None else None,
        last.by if last is not None else "",
        last.detail if last is not None else "",
    )


def _timeline(found: Inspection) -> tuple[Line, ...]:
    """Return the events of the page and of its tags in order of time, each once."""
    own = dict.fromkeys([*found.events, *(event for tag in found.tags for event in tag.invalidated)])
    events = sorted(own, key=lambda event: event.at)[-MAX_LINES:]
    return tuple(map(_line, events))


def _line(event: TimelineEvent) -> Line:
    return Line(event.kind, event.at, event.by, event.seconds, event.detail, event.times)
