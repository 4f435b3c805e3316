"""The operating guide names every state, every reason and every way to be dropped, and none that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from server.core import failures, kafka_connecting
from server.core.lifecycle import State

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/operating.md").read_text()
# The codes that a table row begins with: | `mqtt_quota`, `mqtt_rate` | ...
ROW = re.compile(r"^\| ((?:`[a-z0-9_]+`(?:, )?)+) \|", re.MULTILINE)


def in_guide() -> set[str]:
    """What the guide explains, but for metrics."""
    found = {code for row in ROW.findall(GUIDE) for code in re.findall(r"[a-z0-9_]+", row)}
    return {code for code in found if not code.startswith("mkf_")}


def made_in_code() -> set[str]:
    """The codes with which reasons are made: `Reason("code", ...)`, and the tables of failures."""
    codes = set()
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Reason"), args=[ast.Constant(value=str(code)), *_]):
                    codes.add(code)
                case ast.Subscript(value=ast.Attribute(attr="dropped"), slice=ast.Constant(value=str(code))):
                    codes.add(code)
    for table in (failures._POISON, failures._RETRY, failures._CLIENT, failures._MQTT_CODES, failures._MQTT_311_CODES):
        codes |= {code for code, _ in table.values()}
    codes |= set(kafka_connecting._WHAT_TO_DO)
    codes.add(failures.mqtt_reason(0).code)
    return codes


def test_every_reason_is_explained_and_no_other() -> None:
    assert in_guide() - set(State) == made_in_code()


def test_every_state_is_explained() -> None:
    assert set(State) <= in_guide()
