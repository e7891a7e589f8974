"""A Varnish for a test, with the VCL that the documentation shows, in front of instances of an app."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from cluster.parts import ports
from cluster.parts.part import ROOT, Part, program

VCL = ROOT / "cluster/deploy/varnish"


class Varnish(Part):
    """One edge on two ports of 127.0.0.1: for clients, and for purges. Started again, it is empty.

    A machine without Varnish fails the test: a skipped test would hide that purges are not tested.

    :param directory: for its configuration.
    :param instances: the ports of the instances.
    :param token: the token that purges need; empty for none.
    """

    role: ClassVar[str] = "varnish"
    last_signal: ClassVar[str] = "TERM"

    def __init__(self, directory: Path, instances: Sequence[int], token: str = "") -> None:
        super().__init__("varnish", directory / "varnish.log")
        self._directory = directory
        self._instances = instances
        self._token = token
        self._purges = ports.hold()
        self.purge_port: int = self._purges.getsockname()[1]

    @property
    def purge_url(self) -> str:
        """Return the URL for ``cdn_purge_url``."""
        return f"http://127.0.0.1:{self.purge_port}/"

    def configuration(self) -> str:
        """Return the VCL: that of the documentation, with backends of its own."""
        names = [f"instance{number}" for number in range(len(self._instances))]
        backends = [
            f'backend {name} {{ .host = "127.0.0.1"; .port = "{port}"; }}'
            for name, port in zip(names, self._instances, strict=True)
        ]
        added = [f"    instances.add_backend({name});" for name in names]
        vcl = (VCL / "default.vcl").read_text()
        head, _, tail = vcl.partition("# The instances of the app")
        init = tail[tail.index("sub vcl_init") :]
        kept = [line for line in init.splitlines() if "add_backend" not in line]
        kept[2:2] = added
        return "\n".join([head, *backends, *kept, ""])

    def environment(self) -> Mapping[str, str]:
        token = {"WSGI_ISR_CDN_TOKEN": self._token} if self._token else {}
        return {name: value for name, value in os.environ.items() if not name.startswith("WSGI_ISR_")} | token

    def command(self) -> Sequence[str]:
        (self._directory / "default.vcl").write_text(self.configuration())
        return [
            program("varnishd", "varnish varnish-modules"),
            *("-F", "-j", "none", "-n", str(self._directory / "state")),
            *("-a", f"http={ports.HOST}:{self.port}", "-a", f"purge={ports.HOST}:{self.purge_port}"),
            *("-f", str(self._directory / "default.vcl"), "-p", f"vcl_path={VCL}"),
            *("-s", "malloc,64M", "-p", "thread_pool_min=10", "-p", "thread_pools=1"),
        ]

    def is_ready(self) -> bool:
        # The port is open before the cache process answers.
        with contextlib.suppress(OSError), socket.create_connection((ports.HOST, self.purge_port), 1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(12) == b"HTTP/1.1 405"
        return False

    def close(self) -> None:
        self.stop()
        super().close()
        self._purges.close()
