"""The Grafana dashboard: it can be loaded, and every panel asks for what the service exports."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.chart.exported import SCRAPED, exported, selectors, unknown
from tests.chart.rendering import CHART, SETS, rendered, the

DASHBOARD: dict[str, Any] = json.loads((CHART / "files/dashboard.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def expressions() -> list[str]:
    """Everything the dashboard asks Prometheus, as Grafana would ask it with all variables at "All"."""
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    asked += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    asked = [re.sub(r"\$__rate_interval", "1m", expression) for expression in asked]
    return [re.sub(r"\$(\w+)", lambda name: ".*" if name[1] in VARIABLES else name[0], each) for each in asked]


def test_every_metric_and_label_it_asks_for_is_exported() -> None:
    known = exported()
    assert {expression: wrong for expression in expressions() if (wrong := unknown(expression, known))} == {}


def test_a_metric_or_label_that_is_not_exported_would_be_found() -> None:
    known = exported()
    assert unknown('sum(rate(mkf_gone_total[5m])) / mkf_store_up{mapping="a"}', known) == [
        "mkf_gone_total",
        "mkf_store_up{mapping}",
    ]
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        unknown("sum(rate(mkf_gone_total[5m])", known)


def test_every_metric_of_the_service_has_a_panel() -> None:
    shown = {selector.name for expression in expressions() for selector in selectors(expression)}
    # A histogram is shown by its buckets, and when a counter began is nobody's question.
    own = {name for name in exported() if name.startswith("mkf_") and not re.search(r"_(created|sum|count)$", name)}
    assert own - shown - {"mkf_last_progress_timestamp_seconds"} == set()


def test_legends_name_labels_that_are_left_after_the_aggregation() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.search(r"(?:sum|max|min) by \(([\w, ]+)\)", target["expr"])
            left = set(kept[1].split(", ")) if kept else SCRAPED | {"version"}
            assert legend <= left, panel["title"]


def test_its_variables_are_filled_from_what_is_exported() -> None:
    known = exported()
    for variable in VARIABLES.values():
        if variable["type"] == "datasource":
            continue
        asked = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["definition"])
        assert asked is not None
        assert asked[2] in known[asked[1]] | SCRAPED


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_no_panel_is_bound_to_one_installation_of_grafana() -> None:
    sources = {
        json.dumps(source) for panel in PANELS for source in (panel["datasource"], panel["targets"][0]["datasource"])
    }
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    assert "id" not in DASHBOARD


def test_the_chart_s_config_map_is_the_dashboard() -> None:
    (text,) = the(rendered(SETS["everything"]), "ConfigMap")["data"].values()
    assert json.loads(text) == DASHBOARD
