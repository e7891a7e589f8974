"""Servers in front of an app: nginx with and without ``proxy_cache``, and Varnish. Each has one worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from cluster.parts import ports, processes
from cluster.parts.nginx import Balancer
from cluster.parts.part import Part, program

CONFIGURATION = """\
daemon off;
pid nginx.pid;
error_log {log} warn;
worker_processes 1;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;
    proxy_cache_path temp/pages keys_zone=pages:1m;
    upstream app {{
        server {origin};
        keepalive 64;
        keepalive_requests 1000000;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Real-IP $remote_addr;
{cache}
        }}
    }}
}}
"""
CACHE = """\
            proxy_cache pages;
            proxy_cache_valid 200 1h;
            proxy_ignore_headers Cache-Control Vary;
            add_header X-Cached $upstream_cache_status;"""
VCL = """\
vcl 4.1;
backend app {{ .host = "{host}"; .port = "{port}"; }}
sub vcl_backend_response {{ set beresp.ttl = 1h; }}
sub vcl_deliver {{
    if (obj.hits > 0) {{ set resp.http.X-Cached = "HIT"; }} else {{ set resp.http.X-Cached = "MISS"; }}
}}
"""


class Nginx(Balancer):
    """nginx in front of one app.

    :param directory: for its configuration and its cache.
    :param origin: the port of the app.
    :param caches: whether nginx keeps the pages.
    """

    def __init__(self, directory: Path, origin: int, caches: bool) -> None:
        super().__init__("nginx", directory / "log", directory, {"origin": f"{ports.HOST}:{origin}"}, 0, workers=1)
        self._caches = caches

    def configuration(self) -> str:
        head = super().configuration()
        lines = {line.split(" ", 1)[0]: line for line in head.splitlines() if line[:1].isalpha()}
        (origin,) = self.instances.values()
        return CONFIGURATION.format(
            log=lines["error_log"].split()[1],
            user=lines.get("user", ""),
            address=self.address,
            origin=origin,
            cache=CACHE if self._caches else "",
        )

    def is_ready(self) -> bool:
        return ports.answers(self.port) and len(self.workers()) > 0

    def workers(self) -> list[int]:
        # The manager and the loader of the cache are children as well. The loader ends after a minute.
        return [pid for pid in super().workers() if processes.command_line(pid).startswith("nginx: worker")]


class Varnish(Part):
    """Varnish in front of one app, with its pages in memory.

    :param directory: for its configuration.
    :param origin: the port of the app.
    """

    role: ClassVar[str] = "varnish"
    last_signal: ClassVar[str] = "TERM"

    def __init__(self, directory: Path, origin: int) -> None:
        super().__init__("varnish", directory / "log")
        self._directory = directory
        self._origin = origin

    def command(self) -> Sequence[str]:
        vcl = self._directory / "default.vcl"
        vcl.write_text(VCL.format(host=ports.HOST, port=self._origin))
        return [
            program("varnishd", "varnish"),
            *("-F", "-j", "none", "-n", str(self._directory / "state")),
            *("-a", f"{ports.HOST}:{self.port}", "-f", str(vcl), "-s", "malloc,64M"),
            # One pool for one core, and a thread for each connection of the load.
            *("-p", "thread_pools=1", "-p", "thread_pool_min=50"),
        ]

    def is_ready(self) -> bool:
        return ports.answers(self.port) and len(self.workers()) > 0

    def workers(self) -> list[int]:
        """Return the process ids of the processes that serve."""
        return sorted(process.pid for process in processes.alive() if process.parent == self.pid)
