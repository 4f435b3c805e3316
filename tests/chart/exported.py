"""What /metrics exports: the names, and the labels of each, from a service whose mapping has lived through a lot."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

from server.runtime.metrics import Metrics
from tests.unit.test_metrics import FakeSupervisor
from tests.virtualtime import in_virtual_time

if TYPE_CHECKING:
    from server.runtime.supervisor import Supervisor

# Prometheus itself adds these when it scrapes; the operator also says which pod it was.
SCRAPED = {"job", "instance"}


def exported() -> dict[str, set[str]]:
    """The labels of every metric, by the name it is asked for."""
    text = ""

    @in_virtual_time
    async def expose() -> None:
        nonlocal text
        supervisor = FakeSupervisor("m")
        (forwarder,) = supervisor.all
        forwarder.tally.dropped["not_mappable"] = 1
        forwarder.tally.mqtt_reconnects["mqtt_timeout"] = 1
        forwarder.tally.progressed_at = forwarder.intake.last_message_at = 1.0
        metrics = Metrics(cast("Supervisor", supervisor), version="1", seed_names=False)
        text = (await metrics.exposition()).decode()

    expose()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def selectors(expression: str) -> list[promql.VectorSelector]:
    """The metrics that an expression asks for; ValueError if it can't be parsed."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql.walk(promql.parse(expression), visit)
    return list({str(each): each for each in found}.values())


def unknown(expression: str, known: dict[str, set[str]]) -> list[str]:
    """What an expression asks for that is not exported: a metric, or a label of one."""
    wrong = []
    for selector in selectors(expression):
        name = selector.name or ""
        if name not in known:
            wrong.append(name)
            continue
        asked = {matcher.name for matcher in selector.matchers.matchers}
        wrong += [f"{name}{{{label}}}" for label in asked - known[name] - SCRAPED]
    return wrong
