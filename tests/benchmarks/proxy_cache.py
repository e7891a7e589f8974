"""nginx with ``proxy_cache`` and one worker: the cache that the event loop of a worker is compared with."""

from __future__ import annotations

from cluster.parts import ports
from cluster.parts.nginx import Balancer

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
    server {{
        listen {address};
        location / {{
            proxy_pass http://{origin};
            proxy_cache pages;
            proxy_cache_valid 200 1h;
            proxy_ignore_headers Cache-Control Vary;
            add_header X-Cached $upstream_cache_status;
        }}
    }}
}}
"""


class ProxyCache(Balancer):
    """nginx that keeps the pages of one server."""

    def configuration(self) -> str:
        head = super().configuration()
        lines = {line.split(" ", 1)[0]: line for line in head.splitlines() if line[:1].isalpha()}
        (origin,) = self.instances.values()
        return CONFIGURATION.format(
            log=lines["error_log"].split()[1],
            user=lines.get("user", ""),
            address=self.address,
            origin=origin,
        )

    def is_ready(self) -> bool:
        # The manager and the loader of the cache are children as well.
        return ports.answers(self.port) and len(self.workers()) > 0
