"""Every error code Kafka can give for a produce request, for one batch and for one record in a batch.

Whatever the code: nothing is lost, order is kept, nothing is acknowledged before Kafka has it, and a mapping that makes
no progress says why.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pytest

from server.core.kafka_options import translate
from server.core.lifecycle import State
from server.core.mapping import Mapping as MappingSpec
from server.kafka import watch
from server.kafka.errorlog import ERROR_LOG
from server.kafka.producer import Cluster
from server.runtime.forwarder import Forwarder
from server.runtime.ledger import Ledger
from tests.checking import java_partition
from tests.fakekafka import CONFIRM, FakeKafka, Sent
from tests.fakemqtt import FakeMessage, FakeMqtt, NotingStore
from tests.faults.mock_kafka import MockKafka
from tests.virtualtime import in_virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from server.mqtt.port import Message
    from tests.brokers import KafkaCluster

Meaning = Literal["retry", "poison", "fail", "confirmed"]


@dataclass(frozen=True)
class Expected:
    """What an error code of Kafka does to a mapping, and the reason its status shows meanwhile."""

    meaning: Meaning
    reason: str = ""


_STATE = Expected("retry", "kafka_producer_state")
_NAMELESS = Expected("retry", "kafka_error")
_NO_LEADER = Expected("retry", "kafka_no_leader")
_REPLICAS = Expected("retry", "kafka_not_enough_replicas")
_NOT_AUTHORIZED = Expected("retry", "kafka_not_authorized")
_TOO_LARGE = Expected("poison", "message_too_large")

# What Kafka's own ProduceResponse.java lists as possible.
DOCUMENTED = {
    2: _NAMELESS,  # CORRUPT_MESSAGE
    3: Expected("retry", "kafka_topic_missing"),
    6: _NO_LEADER,
    10: _TOO_LARGE,
    17: Expected("fail", "kafka_invalid_topic"),
    18: _TOO_LARGE,
    19: _REPLICAS,
    20: _REPLICAS,
    21: _NAMELESS,  # INVALID_REQUIRED_ACKS
    29: _NOT_AUTHORIZED,
    31: Expected("retry", "kafka_cluster_not_authorized"),
    43: _NAMELESS,  # UNSUPPORTED_FOR_MESSAGE_FORMAT
    47: _STATE,
    48: _NAMELESS,  # INVALID_TXN_STATE
    49: _STATE,
    51: _NAMELESS,  # CONCURRENT_TRANSACTIONS
    53: _NAMELESS,  # TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    87: Expected("poison", "invalid_record"),
}
# What its broker gives or gave besides, older and newer versions included.
OTHERS = {
    -1: _NAMELESS,  # UNKNOWN_SERVER_ERROR
    5: _NO_LEADER,
    7: Expected("retry", "kafka_timeout"),
    8: _NAMELESS,  # BROKER_NOT_AVAILABLE
    9: _NAMELESS,  # REPLICA_NOT_AVAILABLE
    13: _NAMELESS,  # NETWORK_EXCEPTION
    32: _NAMELESS,  # INVALID_TIMESTAMP
    35: _NAMELESS,  # UNSUPPORTED_VERSION
    42: _NAMELESS,  # INVALID_REQUEST
    44: Expected("retry", "kafka_policy"),
    45: _STATE,
    # DUPLICATE_SEQUENCE_NUMBER: Kafka has this very batch. aiokafka takes it for the success it is.
    46: Expected("confirmed"),
    54: _NAMELESS,  # SECURITY_DISABLED
    56: Expected("retry", "kafka_storage"),
    58: Expected("retry", "kafka_authentication"),
    59: _STATE,
    72: _NAMELESS,  # LISTENER_NOT_FOUND
    74: _NAMELESS,  # FENCED_LEADER_EPOCH
    75: _NAMELESS,  # UNKNOWN_LEADER_EPOCH
    76: _NAMELESS,  # UNSUPPORTED_COMPRESSION_TYPE
    89: _NAMELESS,  # THROTTLING_QUOTA_EXCEEDED
    90: _STATE,
    100: _NAMELESS,  # UNKNOWN_TOPIC_ID
    120: _NAMELESS,  # TRANSACTION_ABORTABLE
}
CODES = DOCUMENTED | OTHERS

PARTITIONS = 3
MQTT_TOPICS = 5
TIMEOUT = 30.0


@dataclass
class Line:
    """A forwarder with a real producer between a broker that is played and a Kafka."""

    mqtt: FakeMqtt
    forwarder: Forwarder
    spec: MappingSpec
    task: asyncio.Task[None]
    given: list[FakeMessage] = field(default_factory=list)

    @property
    def reason(self) -> str:
        return self.forwarder.reason.code if self.forwarder.reason else ""

    @property
    def detail(self) -> str:
        return self.forwarder.reason.detail if self.forwarder.reason else ""

    @property
    def acknowledged(self) -> list[Message]:
        return [message for connection in self.mqtt.connections for message in connection.acknowledged]

    def send(self, count: int, payloads: Mapping[int, bytes] | None = None) -> None:
        """Hand over as many new messages in one read; each says its number, unless `payloads` say else."""
        first = len(self.given)
        fresh = [
            FakeMessage(f"t/{n % MQTT_TOPICS}", (payloads or {}).get(n, b"%d" % n), 1, n + 1)
            for n in range(first, first + count)
        ]
        self.given += fresh
        (connection,) = self.mqtt.open
        connection.hand_over(*fresh)
        self.check_books()

    def resume(self) -> None:
        """Run it again; the broker delivers again what was not acknowledged."""
        done = {message.packet_id for message in self.acknowledged}
        again = [replace(each, duplicate=True) for each in self.given if each.packet_id not in done]
        self.mqtt.queued["base-m"] = again
        self.task = asyncio.create_task(self.forwarder.run(self.spec, 2))

    def check_books(self) -> None:
        tally = self.forwarder.tally
        accounted = tally.delivered + tally.dead_lettered + tally.dropped.total()
        assert tally.received == accounted + self.forwarder.intake.in_flight

    async def reach(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the condition holds, with balanced books all the time."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not condition():
            self.check_books()
            said = self.forwarder.reason
            assert asyncio.get_running_loop().time() < deadline, f"never {what}: {self.forwarder.state}, {said}"
            await asyncio.sleep(0.01)
        self.check_books()

    async def all_acknowledged(self) -> None:
        """Wait until the broker has every acknowledgement; they are in receive order, each once."""
        await self.reach(lambda: len(self.acknowledged) >= len(self.given), "all acknowledged")
        assert [message.payload for message in self.acknowledged] == [message.payload for message in self.given]

    async def failed(self, reason: str) -> None:
        """Wait until it FAILED for this reason."""
        await self.reach(lambda: self.forwarder.state is State.FAILED, "failed")
        await self.task
        assert self.reason.removeprefix("poison_") == reason

    @staticmethod
    def partition(message: FakeMessage) -> int:
        return java_partition(message.topic.encode(), PARTITIONS)

    def check_log(self, values: list[bytes], *, but: set[bytes] | None = None) -> None:
        """Kafka holds all that was given (`but` these), in the order given per MQTT topic once repeats are left out."""
        wanted: dict[str, list[bytes]] = {}
        for each in self.given:
            if each.payload not in (but or set()):
                wanted.setdefault(each.topic, []).append(each.payload)
        topics = {each.payload: each.topic for each in self.given}
        found: dict[str, list[bytes]] = {}
        for value in dict.fromkeys(values):
            found.setdefault(topics[value], []).append(value)
        assert found == wanted


@pytest.fixture
def heard() -> Iterator[None]:
    """Listen to aiokafka's log, as the service does."""
    ERROR_LOG.install()
    yield
    for name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"):
        logging.getLogger(name).removeFilter(ERROR_LOG)


@asynccontextmanager
async def forwarding(servers: str, **spec: Any) -> AsyncIterator[Line]:
    """Run the mapping m from t/# to k until the block ends; nothing of it may be left then."""
    mqtt = FakeMqtt()
    document = {"name": "m", "mqtt": {"topic": "t/#"}, "kafka": {"topic": "k"}, **spec}
    mapping = MappingSpec.model_validate(document)
    ledger = Ledger(NotingStore(mqtt.asked.append).as_store())
    forwarder = Forwarder("m", mqtt.broker(), Cluster(servers, translate({})), ledger)
    forwarder.intake.budget = 10**6
    line = Line(mqtt, forwarder, mapping, asyncio.create_task(forwarder.run(mapping, 1)))
    try:
        yield line
    finally:
        line.task.cancel()
        await asyncio.wait([line.task])
        line.check_books()
        assert mqtt.open == []


async def held(kafka: KafkaCluster, topic: str = "k") -> list[bytes]:
    """The values in a topic."""
    return [record.value or b"" for record in await kafka.read_all(topic)]


# --- one batch ----------------------------------------------------------------------------------------------------


async def batch_refused(code: int) -> None:
    """One run with an error code: first for a single batch, then for every batch until the cause is mended."""
    expected, topic = CODES[code], f"k{code}"
    with MockKafka() as kafka:
        await kafka.create_topic(topic, PARTITIONS)
        async with forwarding(kafka.bootstrap, kafka={"topic": topic}) as line:
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
            kafka.refuse(code, times=1)
            line.send(20)
            if expected.meaning == "fail":
                await line.failed(expected.reason)
                line.resume()
            await line.all_acknowledged()
            kafka.refuse(code)
            before = await held(kafka, topic)
            line.send(20)
            if expected.meaning == "confirmed":
                await line.all_acknowledged()
                return
            if expected.meaning == "retry":
                await line.reach(lambda: line.reason == expected.reason, expected.reason)
                assert line.forwarder.state is State.RETRYING
            else:
                await line.failed(expected.reason)
            assert len(line.acknowledged) == 20, "acknowledged although Kafka refused it"
            assert await held(kafka, topic) == before
            kafka.accept()
            if expected.meaning != "retry":
                line.resume()
            await line.all_acknowledged()
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running again")
        line.check_log(await held(kafka, topic))
    assert line.forwarder.tally.dropped.total() == 0


async def test_a_refused_batch_is_neither_lost_nor_acknowledged_too_early(
    heard: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All codes at once, each with a mapping and a Kafka of its own."""
    del heard
    monkeypatch.setattr(watch, "STALL_SECONDS", 1.0)
    results = await asyncio.gather(*map(batch_refused, CODES), return_exceptions=True)
    problems = {code: result for code, result in zip(CODES, results, strict=True) if result is not None}
    assert problems == {}


@pytest.mark.parametrize("code", [code for code, expected in CODES.items() if expected.meaning == "poison"])
@pytest.mark.parametrize("policy", ["drop", "dead_letter"])
async def test_what_is_refused_again_and_again_as_poison_goes_the_way_of_its_policy(code: int, policy: str) -> None:
    with MockKafka() as kafka:
        await kafka.create_topic("k", PARTITIONS)
        await kafka.create_topic("dead")
        options = {"dead_letter_topic": "dead"} if policy == "dead_letter" else {}
        async with forwarding(kafka.bootstrap, on_poison=policy, **options) as line:
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
            for partition in range(PARTITIONS):
                kafka.refuse_partition("k", partition, code, times=100)
            line.send(20)
            await line.all_acknowledged()
        assert await held(kafka) == []
        letters, tally = await held(kafka, "dead"), line.forwarder.tally
    if policy == "drop":
        assert letters == []
        assert dict(tally.dropped) == {CODES[code].reason: 20}
    else:
        line.check_log(letters)
        assert tally.dead_lettered == 20


async def test_a_dead_letter_topic_that_is_down_is_retried_and_nothing_is_acknowledged() -> None:
    with MockKafka() as kafka:
        await kafka.create_topic("k", PARTITIONS)
        await kafka.create_topic("dead")
        async with forwarding(kafka.bootstrap, on_poison="dead_letter", dead_letter_topic="dead") as line:
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
            # One message: of failures that come together the sink judges one, the other's cause shows the next time.
            kafka.refuse_partition("k", line.partition(FakeMessage("t/0")), 87, times=1)
            kafka.refuse_partition("dead", 0, 29, times=1)
            line.send(1)
            await line.reach(lambda: line.reason == "kafka_not_authorized", "not authorized")
            assert line.forwarder.state is State.RETRYING
            assert "'dead'" in line.detail
            assert line.acknowledged == []
            await line.all_acknowledged()
        line.check_log(await held(kafka, "dead"))


async def test_one_partition_that_is_refused_holds_up_no_other() -> None:
    with MockKafka() as kafka:
        await kafka.create_topic("k", PARTITIONS)
        async with forwarding(kafka.bootstrap) as line:
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
            kafka.refuse_partition("k", 0, 29, times=1)
            line.send(20)
            await line.reach(lambda: line.reason == "kafka_not_authorized", "not authorized")
            others = sum(line.partition(each) != 0 for each in line.given)
            assert line.forwarder.tally.delivered == others
            assert 0 < others < len(line.given)
            await line.all_acknowledged()
        line.check_log(await held(kafka))


# --- one record in a batch ----------------------------------------------------------------------------------------


def refusing(code: int, values: set[bytes]) -> Callable[[Sent], object]:
    """A Kafka that refuses every batch with one of these values in it."""
    return lambda sent: code if sent.topic == "k" and values & set(sent.values) else CONFIRM


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("policy", ["stop", "drop", "dead_letter"])
@in_virtual_time
async def test_one_record_that_is_refused_takes_no_other_with_it(code: int, policy: str) -> None:
    expected = CODES[code]
    # Kafka's limits are for sizes: what is too large for it must be larger than the others.
    poison = b"7" + bytes(100)
    kafka, bad = FakeKafka(), {poison}
    kafka.judge = refusing(code, bad)
    options = {"dead_letter_topic": "dead"} if policy == "dead_letter" else {}
    with pytest.MonkeyPatch.context() as patcher:
        kafka.install(patcher)
        async with forwarding("fake:9092", on_poison=policy, **options) as line:
            await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
            line.send(20, {7: poison})
            if expected.meaning in {"retry", "confirmed"}:
                await line.reach(lambda: line.forwarder.state is State.RETRYING, "retrying")
                assert line.acknowledged == []  # they all came in one read with the one that is refused
                assert not bad & set(kafka.values())
                bad.clear()
            elif expected.meaning == "fail" or policy == "stop":
                await line.failed(expected.reason)
                # What came before it in the same read and is in Kafka is acknowledged, and nothing behind it.
                assert {message.payload for message in line.acknowledged} <= set(kafka.values()) - bad
                assert line.acknowledged == line.given[: len(line.acknowledged)]
                bad.clear()
                line.resume()
            await line.all_acknowledged()
    lost_from_k = expected.meaning == "poison" and policy != "stop"
    line.check_log(kafka.values(), but={poison} if lost_from_k else set())
    assert kafka.values("dead") == ([poison] if lost_from_k and policy == "dead_letter" else [])
    assert line.forwarder.tally.dropped.total() == (1 if lost_from_k and policy == "drop" else 0)


@pytest.mark.parametrize(
    ("settings", "spec", "payload", "reason"),
    [
        pytest.param(
            {"max.message.bytes": "2000"}, {}, b"7" + bytes(3_000), "message_too_large", id="10 MESSAGE_TOO_LARGE"
        ),
        pytest.param(
            {"internal.segment.bytes": "4000"},
            {},
            b"7" + bytes(6_000),
            "message_too_large",
            id="18 RECORD_LIST_TOO_LARGE",
        ),
        pytest.param({"cleanup.policy": "compact"}, {"key": None}, b"7", "invalid_record", id="87 INVALID_RECORD"),
    ],
)
async def test_a_real_kafka_refuses_a_record(  # noqa: PLR0917 - pytest passes fixtures by name
    kafka: KafkaCluster,
    kafka_topic: Callable[..., Awaitable[str]],
    settings: dict[str, str],
    spec: dict[str, Any],
    payload: bytes,
    reason: str,
) -> None:
    """Without a key every record of a compacted topic is refused; one that is too large takes no other with it."""
    topic, dead = await kafka_topic("k", config=settings), await kafka_topic("dead")
    target = {"topic": topic, **spec}
    async with forwarding(kafka.bootstrap, kafka=target, on_poison="dead_letter", dead_letter_topic=dead) as line:
        await line.reach(lambda: line.forwarder.state is State.RUNNING, "running")
        line.send(20, {7: payload})
        await line.all_acknowledged()
    letters, rest = await held(kafka, dead), await held(kafka, topic)
    refused = [payload] if spec.get("key", "") is not None else [each.payload for each in line.given]
    assert letters == refused
    line.check_log(rest, but=set(refused))
    assert line.forwarder.last_error is None or line.forwarder.last_error.reason.code == reason
    assert line.forwarder.tally.dead_lettered == len(refused)
