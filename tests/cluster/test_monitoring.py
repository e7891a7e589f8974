"""The alerts and the dashboard of ``cluster/deploy/prometheus``, as promtool sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "cluster" / "deploy" / "prometheus"
GUIDE = ROOT / "docs" / "how-to" / "monitor.md"


def promtool(*arguments: str, folder: Path = PROMETHEUS) -> str:
    """Return what promtool has to say against files; empty if nothing."""
    found = shutil.which("promtool", path=os.environ.get("PATH"))
    assert found is not None, "promtool is missing: install the package prometheus"
    done = subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture
def dashboard() -> Any:
    return json.loads((PROMETHEUS / "dashboard.json").read_text("utf-8"))


def test_promtool_accepts_the_alerts_and_their_tests() -> None:
    assert promtool("check", "rules", "--lint-fatal", "alerts.yml") == ""
    assert promtool("test", "rules", "alerts-test.yml") == ""


def test_promtool_refuses_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text("utf-8")
    (tmp_path / "alerts.yml").write_text(rules.replace("wsgi_isr_store_node_up", "wsgi_isr_store_node"))
    shutil.copy(PROMETHEUS / "alerts-test.yml", tmp_path)
    assert "WsgiIsrNodeDown" in promtool("test", "rules", "alerts-test.yml", folder=tmp_path)


def test_every_alert_fires_and_is_silent_in_a_test_and_has_a_section_in_the_guide() -> None:
    rules = (PROMETHEUS / "alerts.yml").read_text("utf-8")
    names = re.findall(r"alert: (\w+)", rules)
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "alerts-test.yml").read_text("utf-8"))
    assert len(names) > 8
    assert tested == [name for name in names for _ in range(2)]
    parts = GUIDE.read_text("utf-8").split("\n## ")[1:]
    sections = {part.partition("\n")[0].lower().replace(" ", "-"): part for part in parts}
    for name, anchor in zip(names, re.findall(r"monitor.md#([\w-]+)", rules), strict=True):
        assert f"`{name}`" in sections[anchor], name


def test_the_dashboard_asks_for_its_data_source(dashboard: Any) -> None:
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    sources = [each["datasource"]["uid"] for each in (*dashboard["panels"], *targets)]
    assert len(sources) > 40
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_promtool_reads_every_expression_of_the_dashboard(dashboard: Any, tmp_path: Path) -> None:
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"query:number{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    # JSON is YAML as well.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert promtool("check", "rules", "rules.yml", folder=tmp_path) == ""
