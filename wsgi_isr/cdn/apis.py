"""The APIs that purge tags, as their documentation describes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from .base import API, Request, shown


def _problem(status: int, body: bytes) -> str:
    if 200 <= status < 300:
        return ""
    if status in (401, 403):
        return f"answer {status}: the token is refused ({shown(body)})"
    name = HTTPStatus(status).phrase if status in set(HTTPStatus) else "unknown"
    return f"answer {status} {name}: {shown(body)}"


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


class Cloudflare:
    """``POST /zones/ID/purge_cache`` (developers.cloudflare.com/api, "Purge Cached Content").

    Up to 100 tags a request on each plan. The purge is hard: there is no soft one.
    """

    batch = 100

    def __init__(self, zone: str, token: str) -> None:
        self._path = f"/zones/{zone}/purge_cache"
        self._headers = _bearer(token)

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        return Request("POST", self._path, self._headers, {"tags": list(tokens)})

    def problem(self, status: int, body: bytes) -> str:
        if problem := _problem(status, body):
            return problem
        try:
            answer: Any = json.loads(body)
        except ValueError:
            answer = None
        return "" if isinstance(answer, dict) and answer.get("success") is True else f"no success: {shown(body)}"


class Fastly:
    """``POST /service/ID/purge`` (fastly.com/documentation, "Purging": batch surrogate key purge).

    Up to 256 keys a request. A soft purge marks pages as stale.
    """

    batch = 256

    def __init__(self, zone: str, token: str) -> None:
        self._path = f"/service/{zone}/purge"
        self._headers = {"Fastly-Key": token, "Accept": "application/json"}

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        headers = {**self._headers, "Fastly-Soft-Purge": "1"} if is_soft else self._headers
        return Request("POST", self._path, headers, {"surrogate_keys": list(tokens)})

    def problem(self, status: int, body: bytes) -> str:
        return _problem(status, body)


class Varnish:
    """``PURGE`` with the tags in ``xkey-purge`` or ``xkey-softpurge``, for the VCL in the documentation.

    A request's header may have 8 KB (http_req_hdr_len of varnishd(1)).
    """

    batch = 500

    def __init__(self, zone: str, token: str) -> None:
        self._headers = _bearer(token)

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        field = "xkey-softpurge" if is_soft else "xkey-purge"
        return Request("PURGE", "/", {**self._headers, field: " ".join(tokens)})

    def problem(self, status: int, body: bytes) -> str:
        # A VCL without the purge passes the method to the app, which may answer it with a redirect or a page.
        is_ours = status == 200 and body.startswith(b"purged")
        return "" if is_ours else _problem(status, body) or f"the VCL has no purge: {shown(body)}"


class Bunny:
    """``POST /pullzone/ID/purgeCache`` (docs.bunny.net, "Purge cache"): one tag a request, and no soft purge."""

    batch = 1

    def __init__(self, zone: str, token: str) -> None:
        self._path = f"/pullzone/{zone}/purgeCache"
        self._headers = {"AccessKey": token}

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        (token,) = tokens
        return Request("POST", self._path, self._headers, {"CacheTag": token})

    def problem(self, status: int, body: bytes) -> str:
        return _problem(status, body)


class Generic:
    """``POST`` of ``{"tags": [...], "mode": "hard" | "soft"}`` to ``cdn_purge_url``; any 2xx acknowledges."""

    batch = 100

    def __init__(self, zone: str, token: str) -> None:
        self._headers = _bearer(token)

    def request(self, tokens: Sequence[str], is_soft: bool) -> Request:
        return Request("POST", "", self._headers, {"tags": list(tokens), "mode": "soft" if is_soft else "hard"})

    def problem(self, status: int, body: bytes) -> str:
        return _problem(status, body)


APIS: dict[str, Callable[[str, str], API]] = {
    "cloudflare": Cloudflare,
    "fastly": Fastly,
    "varnish": Varnish,
    "bunny": Bunny,
    "generic": Generic,
}
