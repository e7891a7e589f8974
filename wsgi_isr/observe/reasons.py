"""The reasons in ``Cache-Status`` as sentences, each with a remedy."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """A reason.

    :param text: a sentence.
    :param remedy: the line to write so that the page is cached; empty where nothing should change.
    """

    text: str
    remedy: str = ""


_REASONS = {
    # Bypass: decided before the look-up.
    "method": Reason("The method is neither GET nor HEAD."),
    "authorization": Reason("The request has an Authorization header, or the server has authenticated a user."),
    "upgrade": Reason("The request asks for another protocol."),
    "cookie": Reason(
        "The page reads cookies, and this request has cookies that are neither ignored nor part of the key.",
        'ignore_cookies=["NAME"], cookies=["NAME"] in the rule, or anonymous=',
    ),
    "cookie-encoding": Reason("A declared cookie cannot be read as text."),
    "query": Reason("The rule does not declare a query parameter of the request.", 'query=["NAME"] in the rule'),
    "draft": Reason("The request has the cookie of draft mode."),
    "rule": Reason("The bypass callable of the rule returned true."),
    "no-rule": Reason("No rule covers the path.", '{"/PATTERN": 60} in the rules, or revalidate= on ISR'),
    "revalidate-0": Reason("The lifetime is 0: that of the rule, or the one that the page asked for."),
    "host": Reason("The host is not one of hosts=, or it is no host name.", 'hosts=["HOST"]'),
    "url-length": Reason("Path and query are longer than 8,192 bytes."),
    "url-depth": Reason("The path has more than 32 segments."),
    "url-parameters": Reason("The query has 256 parameters or more."),
    "url-encoding": Reason("The path is not UTF-8."),
    "development": Reason("The app is being developed.", "WSGI_ISR_DEVELOPMENT=cache"),
    "store-disabled": Reason("The store keeps nothing.", "store="),
    "internal-error": Reason("A part of the cache, or a callable of the rule, raised an error: see the log."),
    "switched-off": Reason("The cache is switched off.", "wsgi-isr on"),
    "switched-serve-stale": Reason("The switch keeps old pages in use, and renders none of them again.", "wsgi-isr on"),
    "not-listed": Reason("The rule lists all of its pages, and this page is not among them.", "paths= in the rule"),
    # Uncacheable: a hit-for-miss.
    "set-cookie": Reason("The answer sets a cookie.", "set the cookie in another view, or no cookie at all"),
    "private": Reason("The answer says Cache-Control: private.", "remove private from the answer"),
    "no-store": Reason("The answer says no-store, or its code called no_store().", "remove no-store from the answer"),
    "no-cache": Reason("The answer says Cache-Control: no-cache.", "remove no-cache from the answer"),
    "vary-any": Reason("The Vary of the answer is *, or names no header.", 'vary=["HEADER"] in the rule'),
    "csp-nonce": Reason("The Content-Security-Policy has a nonce, which is for one answer.", "hashes, not nonces"),
    "max-body": Reason("The body is larger than max_body.", "max_body= in the rule"),
    "event-stream": Reason("The body has no end."),
    "self-redirect": Reason("The answer redirects to its own URL.", "canonical_url="),
    "not-asked": Reason(
        'Under revalidate="auto", the answer names no lifetime.', "Cache-Control: s-maxage=60 in the answer, or a rule"
    ),
    "no-app": Reason("A job outside of the app asked for the page."),
    # Failures, and waits without a result.
    "lock-timeout": Reason("Another render takes longer than lock_timeout."),
    "back-off": Reason("The last render failed, and the next attempt is not due yet."),
    "recursive": Reason("The page asked for itself during its render."),
    "exception": Reason("The app raised an exception during the render."),
    "timeout": Reason("The render took longer than render_timeout.", "render_timeout= in the rule"),
    "content-length": Reason("The body is shorter or longer than its Content-Length."),
    "renderer-died": Reason("The render killed its process."),
    "exit": Reason("The process was being stopped."),
    "no-thread": Reason("No thread could be started."),
    "fetch-error": Reason("A fetch of a CachedSession failed during the render."),
    "tags": Reason("The tags callable of the rule raised an error."),
    "undelivered": Reason("A node missed the mark of a refresh."),
    "not-stored": Reason("The store did not take the page."),
    "unstorable": Reason("A header or a tag of the page is not text."),
    "shell": Reason("The page is rendered in the background, and the client gets the fallback of the rule."),
    # Verdicts.
    "fresh": Reason("The stored page is younger than its lifetime, and no tag of it was invalidated."),
    "stale-age": Reason("The stored page is older than its lifetime: it is served, and regenerated."),
    "stale-tag": Reason("A tag was invalidated with mode stale: the page is served, and regenerated."),
    "stale-release": Reason("The page is that of the previous release: it is served, and regenerated."),
    "expired-age": Reason("The stored page is older than expire: the client waits for a new one."),
    "expired-tag": Reason("A tag of the page was invalidated: the client waits for a new one."),
    "evicted": Reason("The store has lost the page, and the copy of this process is stale: it is rendered anew."),
    "purged": Reason("A tag of the page was purged, or the store lost it: the page is rendered anew."),
    "missing": Reason("The page is not stored: the client waits for its first render."),
    "degraded": Reason("A node that holds a tag of the page is away: its age alone decides."),
    "store-away": Reason("The store cannot be asked: the page is rendered for this client, and not stored."),
}


def reason(token: str) -> Reason:
    """Return the sentence and the remedy of a reason."""
    if token in _REASONS:
        return _REASONS[token]
    kind, _, rest = token.partition("-")
    if kind == "vary":
        return Reason(
            f"The Vary of the answer names {rest}, which the rule does not declare.", f'vary=["{rest}"] in the rule'
        )
    if kind == "status" and rest.isdigit():
        if rest == "429" or rest[0] == "5":
            return Reason(f"The render failed: the app answered {rest}.")
        return Reason(f"The status {rest} is not among statuses.", f"statuses=[..., {rest}] in the rule")
    return Reason(f"The app gave the reason {token!a}.")
