"""The alert rules: Prometheus takes them, they ask for what the service exports, and each fires when it should."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import yaml

from tests.chart.exported import SCRAPED, exported, unknown
from tests.chart.rendering import CHART, ROOT, SETS, TOOLS, rendered, the

if TYPE_CHECKING:
    from pathlib import Path

FILE = CHART / "files/alerts.yaml"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
CASES = ROOT / "tests/chart/alerts.test.yaml"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; `make chart-tools` has fetched it."""
    return subprocess.run([TOOLS / "promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_every_metric_and_label_they_ask_for_is_exported() -> None:
    known = exported()
    assert {rule["alert"]: wrong for rule in RULES if (wrong := unknown(rule["expr"], known))} == {}


def test_what_they_say_names_labels_that_are_exported() -> None:
    labels = SCRAPED.union(*exported().values())
    for rule in RULES:
        named = re.findall(r"\$labels\.(\w+)", yaml.safe_dump(rule["annotations"]))
        assert set(named) <= labels, rule["alert"]


def test_each_fires_when_it_should_and_not_when_it_should_not() -> None:
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for moment in case["alert_rule_test"]:
            (fires if moment.get("exp_alerts") else silent).add(moment["alertname"])
    assert fires == silent == {rule["alert"] for rule in RULES}


def test_each_says_how_bad_it_is_and_what_it_means() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_operating_guide_explains_each_and_no_other() -> None:
    guide = (ROOT / "docs/operating.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    explained = [
        name for row in re.findall(r"^\| (`.*?`) \|", guide, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(explained) == sorted(rule["alert"] for rule in RULES)


def test_the_chart_s_rule_is_the_file() -> None:
    assert the(rendered(SETS["everything"]), "PrometheusRule")["spec"] == yaml.safe_load(FILE.read_text())
