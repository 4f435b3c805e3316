"""What checks a change says the same everywhere: make, CI and pre-commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
PRE_COMMIT: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def recipe(target: str) -> list[str]:
    """The commands of a target in the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None, target
    return [line.strip() for line in found[1].splitlines()]


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    (repository,) = PRE_COMMIT["repos"]
    hooks = {" ".join(hook["entry"].split()[:2]).replace(" --force-exclude", "") for hook in repository["hooks"]}
    linters = {re.sub(r"\$\(BIN\)/(ruff \w+|[\w-]+).*", r".venv/bin/\1", line) for line in recipe("lint")}
    assert hooks == linters


def test_ci_runs_targets_of_the_makefile_and_nothing_else() -> None:
    runs = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]
    targets = [run.removeprefix("sudo --preserve-env=PATH ").removeprefix("make ") for run in runs]
    assert targets == ["test", "image"]
    assert all(recipe(target) for target in targets)
    assert "exec make test" in (ROOT / ".ci/run").read_text()
