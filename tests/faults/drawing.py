"""The time line of a run as inline SVG: faults, throughput, what was in flight, and the state of each mapping."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tests.faults.timeline import BUCKET_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.timeline import Outcome

_WIDTH, _LEFT, _TOP = 1060, 110, 26
_CURVE, _STRIP, _GAP = 70, 10, 14
_STATES = {
    "running": "#3a3",
    "retrying": "#e80",
    "starting": "#8bd",
    "draining": "#a7c",
    "paused": "#999",
    "failed": "#c00",
    "no answer": "#ddd",
}
_COLOURS = ("#06c", "#0a7", "#c3c", "#a60")


def draw(outcome: Outcome) -> str:
    """Draw one run."""
    scale = (_WIDTH - _LEFT) / max(outcome.seconds, 1.0)
    at = _TOP
    parts = _legend(outcome)
    for title, curves in (
        ("messages a second", [("#bbb", outcome.accepted), *zip(_COLOURS, outcome.delivered.values(), strict=False)]),
        ("in flight", list(zip(_COLOURS, outcome.in_flight.values(), strict=False))),
    ):
        parts += _curves(title, curves, at, scale)
        at += _CURVE + _GAP
    for mapping, spans in outcome.states.items():
        parts += _strip(mapping, spans, at, scale, outcome.seconds)
        at += _STRIP + 4
    height = at + _GAP
    faults = []
    for fault in outcome.faults:
        x, width = _LEFT + fault.begin * scale, max(1.5, (min(fault.end, outcome.seconds) - fault.begin) * scale)
        recovered = f", recovered {fault.recovered - fault.end:.1f} s later" if fault.recovered is not None else ""
        tip = f"{fault.name}: {fault.begin:.1f} s to {fault.end:.1f} s{recovered}"
        faults.append(
            f"<rect x='{x:.1f}' y='{_TOP}' width='{width:.1f}' height='{height - _TOP}' fill='#c00' opacity='.12'>"
            f"<title>{escape(tip)}</title></rect>"
        )
    return f"<svg width='{_WIDTH}' height='{height}'>{''.join(faults)}{''.join(parts)}</svg>"


def _legend(outcome: Outcome) -> list[str]:
    parts, x = [], _LEFT
    for name, colour in [
        *(("accepted", "#bbb"),),
        *zip(outcome.delivered, _COLOURS, strict=False),
        *_STATES.items(),
        ("fault", "#fcc"),
    ]:
        parts.append(f"<rect x='{x}' y='4' width='9' height='9' fill='{colour}'/>")
        parts.append(f"<text x='{x + 12}' y='12'>{escape(name)}</text>")
        x += 24 + 6 * len(name)
    return parts


def _curves(title: str, curves: Sequence[tuple[str, Sequence[int]]], top: int, scale: float) -> list[str]:
    most = max((max(values, default=0) for _, values in curves), default=0) or 1
    parts = [
        f"<text x='0' y='{top + 12}'>{escape(title)}</text><text x='0' y='{top + 26}'>up to {most}</text>",
        f"<line x1='{_LEFT}' x2='{_WIDTH}' y1='{top + _CURVE}' y2='{top + _CURVE}' stroke='#ccc'/>",
    ]
    for colour, values in curves:
        points = " ".join(
            f"{_LEFT + (index + 0.5) * BUCKET_SECONDS * scale:.1f},{top + _CURVE * (1 - value / most):.1f}"
            for index, value in enumerate(values)
        )
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}'/>")
    return parts


def _strip(mapping: str, spans: Sequence[tuple[float, str]], top: int, scale: float, seconds: float) -> list[str]:
    parts = [f"<text x='0' y='{top + 9}'>{escape(mapping)}</text>"]
    for index, (since, state) in enumerate(spans):
        until = spans[index + 1][0] if index + 1 < len(spans) else seconds
        parts.append(
            f"<rect x='{_LEFT + since * scale:.1f}' y='{top}' width='{max(0.0, until - since) * scale:.1f}' "
            f"height='{_STRIP}' fill='{_STATES.get(state, '#000')}'><title>{escape(state)}</title></rect>"
        )
    return parts
