"""nginx as the load balancer. The configuration that is written here is an example for real sites."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..errors import ClusterError
from . import ports, processes
from .part import PATIENCE, Part, program

CONFIGURATION = """\
# nginx in front of several instances of one app. `python -m cluster up` writes this file anew at each start.
# Paths are relative to nginx's prefix (-p).
daemon off;
pid nginx.pid;
error_log {log} warn;
worker_processes {workers};
{user}
events {{
    worker_connections 1024;
}}

http {{
    access_log off;
    client_body_temp_path temp/body;
    proxy_temp_path temp/proxy;
    fastcgi_temp_path temp/fastcgi;
    uwsgi_temp_path temp/uwsgi;
    scgi_temp_path temp/scgi;

    upstream instances {{
        # All workers of nginx share their knowledge of the instances.
        zone instances 64k;
        # A failed instance gets no requests for two seconds. So a hung instance delays one visitor in that time, not
        # all. These checks are passive: nginx sends no requests of its own.
{servers}
        # Each instance once more, as a backup. After a failure of each (by killed workers, for example), nginx would
        # otherwise answer 502 although all instances run.
{backups}
        # nginx keeps connections open between requests. It must close them before gunicorn does (--keep-alive 75):
        # otherwise a request could be sent on a connection that closes.
        keepalive 32;
        keepalive_timeout 60s;
    }}

    # The instance that answered: the last of those that nginx asked.
    map $upstream_addr $instance {{
        default balancer;
{names}
    }}

    server {{
        listen {address};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # Host is a part of a page's key, so nginx passes it on.
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        # nginx asks the next instance if one is dead. It repeats no POST, which could be carried out twice, and no
        # request that the app has answered.
        proxy_next_upstream error timeout;
        proxy_connect_timeout 1s;
        # Above `lock_timeout` (10 s), the longest wait for the render of another request.
        proxy_read_timeout {read_timeout:g}s;
        add_header X-Instance $instance always;
        add_header X-Upstream $upstream_addr always;

        location / {{
            proxy_pass http://instances;
            # nginx asks each line above once, and then answers 502. An instance can fail twice and still run: two of
            # its workers may be killed, one after the other. So nginx asks all instances once more.
            error_page 502 = @again;
        }}

        location @again {{
            # These methods must not be carried out twice.
            if ($request_method !~ "^(GET|HEAD|OPTIONS)$") {{
                return 502;
            }}
            proxy_pass http://instances;
        }}
    }}
}}
"""


class Balancer(Part):
    """nginx on a port that visitors use.

    :param directory: for its configuration and its temporary files.
    :param instances: name and address of each instance.
    :param read_timeout: seconds that an instance may take before nginx asks another one.
    """

    role: ClassVar[str] = "nginx"
    last_signal: ClassVar[str] = "TERM"

    def __init__(
        self,
        name: str,
        log: Path,
        directory: Path,
        instances: Mapping[str, str],
        port: int,
        *,
        read_timeout: float = 12.0,
        workers: int = 2,
    ) -> None:
        super().__init__(name, log, port)
        self._directory = directory
        self.instances = instances
        self._read_timeout = read_timeout
        self._workers = workers

    @property
    def url(self) -> str:
        """Return the URL for visitors."""
        return f"http://{self.address}"

    def configuration(self) -> str:
        """Return the text of ``nginx.conf``."""
        assert self.log is not None
        indent = " " * 8
        each = [f"{indent}server {address} max_fails=1 fail_timeout=2s;" for address in self.instances.values()]
        again = [f"{indent}server {address} max_fails=0 backup;" for address in self.instances.values()]
        names = [f"{indent}~{re.escape(address)}$ {name};" for name, address in self.instances.items()]
        return CONFIGURATION.format(
            log=os.path.relpath(self.log, self._directory),
            workers=self._workers,
            # A master of root would start its workers as a user without access to this directory.
            user=f"user {getpass.getuser()};\n" if os.geteuid() == 0 else "",
            servers="\n".join(each),
            backups="\n".join(again),
            names="\n".join(names),
            address=self.address,
            read_timeout=self._read_timeout,
        )

    def command(self) -> Sequence[str]:
        nginx = program("nginx")
        (self._directory / "temp").mkdir(exist_ok=True)
        (self._directory / "nginx.conf").write_text(self.configuration())
        command = [nginx, "-p", f"{self._directory}/", "-c", "nginx.conf"]
        if _version(nginx) >= (1, 19, 5):  # older versions open the system-wide log first
            assert self.log is not None
            command += ["-e", os.path.relpath(self.log, self._directory)]
        return command

    def is_ready(self) -> bool:
        return ports.answers(self.port) and len(self.workers()) == self._workers

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        return sorted(process.pid for process in processes.alive() if process.parent == self.pid)

    def reload(self) -> None:
        """Read the configuration again: new workers take over, old ones finish their requests.

        :raises ClusterError: it does not run, or hangs.
        """
        self.need()
        before = set(self.workers())
        (self._directory / "nginx.conf").write_text(self.configuration())
        self.send(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while len(set(self.workers()) - before) < self._workers:
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} has not reloaded within {PATIENCE:g} s (see {self.log})")
            time.sleep(0.01)

    def telling(self, lines: Sequence[str]) -> str:
        emergencies = [line for line in lines if "[emerg]" in line]
        return (emergencies or list(lines))[-1]


def _version(nginx: str) -> tuple[int, ...]:
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"nginx/([0-9.]+)", said)
    return tuple(map(int, found[1].split("."))) if found else (0,)
