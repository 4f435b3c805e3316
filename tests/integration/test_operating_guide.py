"""The operating guide, read with a service in each state: what it says of the state and of the reason is so."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.forwarding import act, pause, quiet, resume, retrying

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.brokers import Kafka, Mosquitto
    from tests.forwarding import Stage
    from tests.service import Service

GUIDE = (Path(__file__).parents[2] / "docs/operating.md").read_text()
RECOVERY = 30.0


def says_of(code: str) -> str:
    """What the guide has in the row of a state or a reason: what it means, and what to do."""
    rows = re.findall(rf"^\|[^|]*`{code}`[^|]*\|(.*)\|$", GUIDE, re.MULTILINE)
    assert len(rows) == 1, f"the guide has {len(rows)} rows for {code!r}"
    return str(rows[0])


def explained(status: dict[str, Any], *, reason: str, saying: str, detail: str) -> None:
    """The status has this reason; its row in the guide says the one, and what the status adds to it the other."""
    code, _, rest = (status["reason"] or "").partition(": ")
    assert code == reason
    assert saying in says_of(code)
    assert detail in rest


async def arrives(stage: Stage, service: Service, topic: str, payload: bytes) -> None:
    """Publish one message, and see it in Kafka and its books closed."""
    held = await stage.arrived(topic)
    await stage.publish([(f"{stage.unique}/a", payload)])
    assert (await stage.kafka.wait_for_records(topic, held + 1))[-1].value == payload
    await quiet(service)


@pytest.mark.parametrize("protocol", ["5"])
async def test_starting_names_the_side_that_does_not_answer_after_3_s_and_goes_on_by_itself(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    assert "connecting for the first time" in says_of("starting")
    assert "after 3 s without an answer it says whose" in says_of("starting")
    stage.mosquitto = broker = own_mosquitto()
    topic = await stage.kafka_topic()
    broker.pause()
    async with stage.service(stage.mapping(topic)) as service:
        await service.wait_ready()
        status = await service.wait_state("m", "retrying")
        explained(
            status, reason="mqtt_stalled", saying="no answer for more than 3 s, still waiting", detail=str(broker.port)
        )
        log = service.log_path.read_text()
        assert log.index("mapping_starting") < log.index("mapping_retrying")
        broker.resume()
        await service.wait_state("m", timeout=RECOVERY)
        await arrives(stage, service, topic, b"at last")


@pytest.mark.parametrize("protocol", ["5"])
async def test_running_retrying_draining_and_paused_are_what_the_guide_says(
    stage: Stage, own_mosquitto: Callable[..., Mosquitto], own_kafka: Callable[..., Kafka]
) -> None:
    stage.mosquitto = broker = own_mosquitto()
    stage.kafka = kafka = own_kafka()
    await kafka.create_topic("t")
    async with stage.running(stage.mapping("t")) as service:
        assert "subscribed, and Kafka takes records" in says_of("running")
        await arrives(stage, service, "t", b"running")

        assert "tries again by itself, at most 15 s apart" in says_of("retrying")
        await asyncio.to_thread(broker.stop)
        status = await retrying(service, "mqtt_unreachable")
        explained(status, reason="mqtt_unreachable", saying="no TCP connection: refused", detail="refused")
        await asyncio.to_thread(broker.start)
        await service.wait_state("m", timeout=RECOVERY)
        await arrives(stage, service, "t", b"the broker is back")

        kafka.pause()
        await stage.publish([(f"{stage.unique}/a", b"held")])
        status = await service.wait_state("m", "retrying")
        explained(status, reason="kafka_stalled", saying="not answered for more than 3 s", detail="for more than 3 s")

        assert "what it has goes to Kafka and is acknowledged, for 15 s at most" in says_of("draining")
        assert "the reason says what holds it up" in says_of("draining")
        began = asyncio.get_running_loop().time()
        await act(service, "pause")
        status = await service.wait_state("m", "draining")
        assert status["desired"] == "paused"
        status = await service.wait_status("m", lambda s: s["reason"] is not None, "what holds it up")
        assert status["reason"].partition(":")[0] in {"kafka_stalled", "kafka_unreachable", "kafka_timeout"}

        assert "its drain has ended" in says_of("paused")
        status = await service.wait_state("m", "paused")
        assert asyncio.get_running_loop().time() - began < 25, "15 s, and some more to give up what was sent"
        assert not status["mqtt"]["connected"]
        kafka.resume()
        assert "resume" in says_of("paused")
        await resume(service)
        await kafka.wait_for_records("t", 3)
        await quiet(service)
        # Frozen, Kafka may have taken in what it could not confirm any more: then it is there once more.
        values = [record.value for record in await kafka.read_all("t")]
        assert [value for n, value in enumerate(values) if value not in values[:n]] == [
            b"running",
            b"the broker is back",
            b"held",
        ]


@pytest.mark.parametrize("protocol", ["5"])
async def test_failed_waits_for_a_decision_acknowledges_nothing_and_goes_on_once_the_cause_is_mended(
    stage: Stage,
) -> None:
    topic = await stage.kafka_topic(config={"max.message.bytes": "2000"})
    async with stage.running(stage.mapping(topic)) as service:
        assert "nothing of it runs, and nothing is acknowledged" in says_of("failed")
        await stage.publish([(f"{stage.unique}/a", b"x" * 5_000), (f"{stage.unique}/a", b"behind it")])
        status = await service.wait_state("m", "failed")
        code = status["reason"].partition(":")[0]
        assert "`failed` with `poison_` and one of" in GUIDE.replace("\n", " ")
        explained(
            {**status, "reason": status["reason"].removeprefix("poison_")},
            reason="message_too_large",
            saying="`max.message.bytes`",
            detail=f"'{stage.unique}/a'",
        )
        assert code.startswith("poison_")
        assert not status["mqtt"]["connected"]
        assert await stage.arrived(topic) == 0

        assert "mend the cause, `POST .../resume`" in says_of("failed")
        await stage.kafka.set_topic_config(topic, {"max.message.bytes": "1000000"})
        await resume(service)
        records = await stage.kafka.wait_for_records(topic, 2)
        assert [record.value for record in records] == [b"x" * 5_000, b"behind it"]
        await quiet(service)
        await pause(service)
