"""The chart as `helm template` renders it."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "chart"
TOOLS = ROOT / ".cache/tools/bin"
HELM = TOOLS / "helm"
# The sets of values that are rendered everywhere, by name.
SETS = {path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))}
OLDEST, NEWEST = "1.25.0", "1.37.0"

Thing = dict[str, Any]


def helm(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; `make chart-tools` has built it."""
    return subprocess.run(
        [HELM, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def rendered(values: Path, *more: str, version: str = NEWEST, release: str = "r") -> list[Thing]:
    """The objects of the chart with those values, `helm test`'s included."""
    done = helm("template", release, CHART, "--kube-version", version, "--values", values, *more)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing is not None]


def refusal(*arguments: str | Path) -> str:
    """What helm says when it does not render the chart with those arguments."""
    done = helm("template", "r", CHART, "--kube-version", NEWEST, *arguments)
    assert done.returncode != 0, "it was rendered"
    return done.stderr


def of_kind(things: list[Thing], kind: str) -> list[Thing]:
    """The objects of a kind."""
    return [thing for thing in things if thing["kind"] == kind]


def the(things: list[Thing], kind: str) -> Thing:
    """The only object of a kind."""
    (thing,) = of_kind(things, kind)
    return thing


def container(stateful_set: Thing) -> Thing:
    """The forwarder's container."""
    (found,) = stateful_set["spec"]["template"]["spec"]["containers"]
    return dict(found)


def secret_text(secret: Thing, key: str) -> str:
    """What a Secret holds under a key."""
    return base64.b64decode(secret["data"][key]).decode()
