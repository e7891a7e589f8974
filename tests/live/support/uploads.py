"""An app with uploads and files in front of :mod:`.origin`, wrapped by ISR.

``POST`` answers with the digest of its body. ``/file`` is a cached page and ``/private`` an answer that no cache keeps.
Both send this file with the server's ``wsgi.file_wrapper`` (PEP 3333, "Optional Platform-Specific File Handling").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgi_isr import ISR

from .origin import origin

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

SENT = Path(__file__)


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the WSGI app."""
    path = environ["PATH_INFO"]
    if environ["REQUEST_METHOD"] == "POST":
        body = hashlib.sha256(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))).hexdigest().encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]
    if path not in ("/file", "/private"):
        return origin(environ, start_response)
    wrapper = environ.get("wsgi.file_wrapper")
    headers = [("Content-Type", "text/plain"), ("X-File-Wrapper", "yes" if wrapper else "no")]
    if path == "/private":
        headers.append(("Cache-Control", "no-store"))
    start_response("200 OK", headers)
    file = SENT.open("rb")
    return wrapper(file, 512) if wrapper else iter(lambda: file.read(512), b"")


application = ISR(app)
