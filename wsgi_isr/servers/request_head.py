"""The heads of plain requests, as gunicorn's own C parser reads them.

A head is read here only if its meaning is certain. Every other head is left to gunicorn: a body, a name with an
underscore, a repeated field, an absolute target. Limits and syntax are those of the parser, which gets gunicorn's own
arguments. The target is split and decoded by gunicorn's own functions.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from gunicorn import util
from gunicorn.http.message import RFC9112_TARGET_INVALID, HeaderPolicy, Request, _check_fast_parser
from gunicorn.http.unreader import IterUnreader

from ..pages.fingerprint import VARIABLES

#: Fields of a message with a body, an expectation or another protocol (RFC 9110, 7.8, 8.6, 10.1.1; RFC 9112, 6).
_NOT_PLAIN = frozenset(
    {"CONTENT-LENGTH", "CONTENT-TYPE", "EXPECT", "HTTP2-SETTINGS", "TRAILER", "TRANSFER-ENCODING", "UPGRADE"}
)
#: The keys of an environ that are not header fields and that :class:`HeadReader` knows.
_OF_THE_LINE = frozenset({"PATH_INFO", "QUERY_STRING", "REQUEST_METHOD", "SCRIPT_NAME", "wsgi.url_scheme"})
#: The keys that gunicorn sets for no plain request.
_NEVER_SET = frozenset({"AUTH_TYPE", "REMOTE_USER"})
#: The field names, and the targets, that are remembered. Longer ones are read anew each time.
_MOST_NAMES, _MOST_TARGETS, _LONGEST = 512, 1024, 256
_IGNORED, _REFUSED = "", "-"


#: The empty line after a head, with or without CR.
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class Incomplete(Exception):
    """More bytes may complete the head."""


#: A plain GET or HEAD, as a plain tuple, because a class of its own would cost a tenth of the reading:
#:
#: - the environ of a GET, with the keys that a fingerprint, the coding and the condition depend on;
#: - whether the method is HEAD;
#: - the minor HTTP version, 0 or 1;
#: - whether the client expects the connection to be closed after the answer (RFC 9112, 9.3);
#: - the number of bytes.
Head = tuple[dict[str, Any], bool, int, bool, int]


def is_parser_usable(cfg: Any) -> bool:
    """Return whether gunicorn itself would use its C parser.

    :raises RuntimeError: the setting ``http_parser`` asks for the parser, and it is missing.
    """
    return bool(_check_fast_parser(cfg))


class HeadReader:
    """Read the heads of plain requests for a worker.

    :param cfg: gunicorn's configuration.
    :param also: keys of header fields that the environ needs beside those of a fingerprint.
    """

    def __init__(self, cfg: Any, also: frozenset[str] = frozenset()) -> None:
        import gunicorn_h1c

        self._cfg = cfg
        self._parse = gunicorn_h1c.parse_request
        self._incomplete = gunicorn_h1c.IncompleteError
        # gunicorn works out its limits in each request.
        sample = Request(cfg, IterUnreader([b"GET / HTTP/1.1\r\n\r\n"]), None)
        self._arguments = {
            "last_len": 0,
            "limit_request_line": sample._fast_limit_request_line,
            "limit_request_fields": sample.limit_request_fields,
            "limit_request_field_size": sample.limit_request_field_size,
            "permit_unconventional_http_method": cfg.permit_unconventional_http_method,
            "permit_unconventional_http_version": cfg.permit_unconventional_http_version,
        }
        #: By key of a field, the value that means https. Fields with an underscore are refused.
        self._schemes = {
            f"HTTP_{name.replace('-', '_')}": value
            for name, value in cfg.secure_scheme_headers.items()
            if name == name.upper() and "_" not in name
        }
        self._is_trusted = functools.lru_cache(1024)(self._trusts)
        fields = frozenset(VARIABLES) - _OF_THE_LINE - _NEVER_SET
        if unknown := {key for key in fields if not key.startswith("HTTP_")}:
            raise LookupError(f"a fingerprint has {sorted(unknown)}, which are no header fields")
        self._needed = {*fields, *also, *self._schemes, "HTTP_CONNECTION", "HTTP_ACCEPT_ENCODING", "HTTP_IF_NONE_MATCH"}
        #: By name of a field as it was sent: its key, or what to do with it.
        self._names: dict[bytes, str] = {}
        self._script = ""
        self.look_at_environment()

    def look_at_environment(self) -> None:
        """Read the mount point, as gunicorn does for each request. An event loop calls this once a second."""
        script = os.environ.get("SCRIPT_NAME", "")
        if script != self._script or not hasattr(self, "_remembered"):
            self._script = script
            self._remembered = functools.lru_cache(_MOST_TARGETS)(self._split)

    def read(self, data: bytes, peer: Any) -> Head | None:
        """Return the head at the begin of ``data``; ``None`` if it is for gunicorn.

        :param peer: the client's address, as gunicorn has it.
        :raises Incomplete: ``data`` is a part of a head.
        """
        if data[0] in b"\r\n":  # an empty line before the request line (RFC 9112, 2.2)
            # A thread that got it alone would wait for the rest.
            if _END_OF_HEAD.search(data.lstrip(b"\r\n")) is None:
                raise Incomplete
            return None
        try:
            parsed = self._parse(data, **self._arguments)
        except self._incomplete:
            raise Incomplete from None
        except Exception:
            return None  # gunicorn finds the same error, and answers it
        method, minor = parsed["method"], parsed["minor_version"]
        if (method != b"GET" and method != b"HEAD") or minor not in (0, 1):
            return None
        target = parsed["path"]
        parts = self._remembered(target) if len(target) <= _LONGEST else self._split(target)
        if parts is None:
            return None
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": self._script,
            "PATH_INFO": parts[0],
            "QUERY_STRING": parts[1],
            "wsgi.url_scheme": "http",
        }
        names = self._names
        for name, value in parsed["headers"]:
            key = names.get(name)
            if key is None:
                key = self._learn(name)
            if not key:
                continue
            if key == _REFUSED or key in environ:
                return None
            environ[key] = value.decode("latin-1")
        for key in self._schemes:
            if key in environ and not self._find_scheme(environ, peer):
                return None
        connection = environ.pop("HTTP_CONNECTION", None)
        closes = minor == 0
        if connection is not None:
            word = connection.lower()
            if word != "close" and word != "keep-alive":
                return None
            closes = word == "close"
        return environ, method == b"HEAD", minor, closes, parsed["consumed"]

    def _learn(self, name: bytes) -> str:
        """Return the key of a field, or what to do with it."""
        upper = name.decode("latin-1").upper()
        key = f"HTTP_{upper.replace('-', '_')}"
        if "_" in upper or upper in _NOT_PLAIN:
            key = _REFUSED
        elif key not in self._needed:
            key = _IGNORED
        if len(self._names) < _MOST_NAMES and len(name) <= _LONGEST:
            self._names[name] = key
        return key

    def _split(self, target: bytes) -> tuple[str, str] | None:
        """Return ``PATH_INFO`` and ``QUERY_STRING`` of a target in origin form (RFC 9112, 3.2.1)."""
        uri = util.bytes_to_str(target)
        if uri[:1] != "/" or uri[:2] == "//" or "#" in uri or RFC9112_TARGET_INVALID.search(uri):
            return None
        try:
            parts = util.split_request_uri(uri)
        except ValueError:
            return None
        path = parts.path or ""
        if not path.startswith(self._script):
            return None
        return util.unquote_to_wsgi_str(path[len(self._script) :]), parts.query or ""

    def _find_scheme(self, environ: dict[str, Any], peer: Any) -> bool:
        """Set the scheme as a trusted proxy gives it; return whether its fields agree."""
        # A client of a Unix socket has no address.
        if not self._is_trusted(peer[0] if isinstance(peer, tuple) else None):
            return True
        schemes = self._schemes
        said = {"https" if environ[key] == schemes[key] else "http" for key in schemes if key in environ}
        environ["wsgi.url_scheme"] = min(said)
        return len(said) == 1

    def _trusts(self, host: str | None) -> bool:
        """Return whether gunicorn takes the scheme from a client (``forwarded_allow_ips``)."""
        policy = HeaderPolicy()
        policy.cfg, policy.peer_addr = self._cfg, None if host is None else (host, 0)
        return bool(policy._peer_is_trusted_proxy())
