"""docs/deploying.md: its values are rendered, and the names in its commands are those that come out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.config.load import load_config
from tests.chart.rendering import ROOT, Thing, container, of_kind, rendered, secret_text, the

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = (ROOT / "docs/deploying.md").read_text()


def as_the_guide_says(folder: Path) -> list[Thing]:
    """What `helm install forwarder ./chart --values values.yaml` renders with the guide's values."""
    (values,) = re.findall(r"^```yaml\n# values.yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert "helm install forwarder ./chart --values values.yaml" in GUIDE
    (folder / "values.yaml").write_text(values)
    return rendered(folder / "values.yaml", release="forwarder")


def test_its_values_are_rendered_and_their_configuration_is_valid(tmp_path: Path) -> None:
    things = as_the_guide_says(tmp_path)
    (config,) = (secret for secret in of_kind(things, "Secret") if "config.yaml" in secret["data"])
    (tmp_path / "config.yaml").write_text(secret_text(config, "config.yaml"))
    given = {each["name"]: "x" for each in container(the(things, "StatefulSet"))["env"] if "valueFrom" in each}
    assert len(load_config(tmp_path / "config.yaml", given).forwarding) == 1
    for kind in ("ServiceMonitor", "PrometheusRule", "NetworkPolicy", "ConfigMap"):
        assert of_kind(things, kind), kind


def test_its_commands_name_the_pod_and_the_claim_that_there_are(tmp_path: Path) -> None:
    stateful_set = the(as_the_guide_says(tmp_path), "StatefulSet")
    pod = f"{stateful_set['metadata']['name']}-0"
    (claim,) = stateful_set["spec"]["volumeClaimTemplates"]
    assert set(re.findall(r"kubectl exec ([\w-]+)", GUIDE)) == {pod}
    assert re.findall(r"`(data-[\w-]+)`", GUIDE) == [f"{claim['metadata']['name']}-{pod}"]


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link
