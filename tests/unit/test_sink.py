"""The sink: in order per partition, one batch at a time, every arrival confirmed once, a reason for every silence."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, for_code
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.acks import AckWindow
from server.core.kafka_options import translate
from server.core.lifecycle import Reason
from server.core.mapping import Mapping
from server.kafka.errorlog import current_complaints
from server.kafka.producer import Cluster
from server.kafka.sink import Sink, SinkStoppedError
from server.tasks import ended
from tests.fakekafka import CONFIRM, LOSE_ANSWER, STALL, FakeKafka, FakeProducer, Sent
from tests.virtualtime import in_virtual_time, now, settled, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from server.core.acks import Arrival


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the sink sees it."""

    payload: bytes
    topic: str = "t"
    qos: int = 1
    packet_id: int | None = 1


class Books:
    """Notes what the sink reports."""

    def __init__(self) -> None:
        self.delivered_messages = self.delivered_bytes = 0
        self.waits: list[tuple[float, int]] = []
        self.reconnects: list[str] = []
        self.dead_letters = 0
        self.drops: Counter[str] = Counter()
        self.rounds = 0
        self.on_progress: Callable[[], None] = lambda: None
        self.told: list[str | None] = []
        self.detail = ""

    def delivered(self, messages: int, size: int) -> None:
        self.delivered_messages += messages
        self.delivered_bytes += size

    def waited(self, seconds: float, messages: int) -> None:
        self.waits.append((seconds, messages))

    def kafka_reconnected(self, reason: str) -> None:
        self.reconnects.append(reason)

    def dead_lettered(self, messages: int) -> None:
        self.dead_letters += messages

    def dropped(self, reason: str, messages: int) -> None:
        self.drops[reason] += messages

    def progressed(self) -> None:
        self.rounds += 1
        self.on_progress()

    def kafka_trouble(self, reason: Reason | None) -> None:
        self.told.append(reason.code if reason else None)
        self.detail = reason.detail if reason else ""


@dataclass
class Desk:
    """A sink with its window, its books, and a task that runs it."""

    kafka: FakeKafka
    sink: Sink
    window: AckWindow[Message]
    books: Books
    task: asyncio.Task[None]
    arrivals: list[Arrival[Message]] = field(default_factory=list)
    added: int = 0

    def add(self, *payloads: bytes, topic: str = "t") -> Arrival[Message]:
        return self.arrive(*(Message(payload, topic) for payload in payloads))

    def arrive(self, *messages: Message) -> Arrival[Message]:
        arrival = self.window.arrive(messages, 1, now())
        self.sink.add(arrival, messages)
        self.window.confirm(arrival)
        self.arrivals.append(arrival)
        self.added += len(messages)
        self.check()
        return arrival

    def check(self) -> None:
        books = self.books
        assert self.added == (
            books.delivered_messages + books.dead_letters + books.drops.total() + self.sink.unconfirmed
        )
        assert all(arrival.open_parts >= 0 for arrival in self.arrivals)

    @property
    def state(self) -> str | None:
        return self.books.told[-1] if self.books.told else "nothing"

    async def stopped(self) -> Reason:
        with pytest.raises(SinkStoppedError) as caught:
            await self.task
        self.check()
        return caught.value.reason


@asynccontextmanager
async def writing(cluster: FakeKafka, config: dict[str, Any] | None = None, **spec: Any) -> AsyncIterator[Desk]:
    """Run a sink of a mapping to the topic k."""
    document = {"name": "m", "mqtt": {"topic": "#"}, "kafka": {"topic": "k"}, **spec}
    with pytest.MonkeyPatch.context() as patcher:
        cluster.install(patcher)
        window: AckWindow[Message] = AckWindow()
        books = Books()
        sink = Sink(
            Cluster("kafka:9092", translate(config or {})),
            Mapping.model_validate(document),
            window,
            outcomes=books,
            random=lambda: 0.0,
        )
        desk = Desk(cluster, sink, window, books, asyncio.create_task(sink.run()))
        try:
            yield desk
        finally:
            desk.task.cancel()
            await asyncio.wait([desk.task])
            assert cluster.open_producers == 0
            assert sink.in_flight_bytes == 0


@asynccontextmanager
async def stalled_in_many_lanes(kafka: FakeKafka) -> AsyncIterator[Desk]:
    """40 messages on their way to as many of 32 partitions as they come to; Kafka answers none of its own accord."""
    kafka.topics["k"] = 32
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.arrive(*(Message(b"%d" % number, f"t{number}") for number in range(40)))
        await until(lambda: len(kafka.sent) > 5)
        await settled()
        yield desk


def refuse(code: object, *payloads: bytes) -> Callable[[Sent], object]:
    """Refuse every batch that holds one of these payloads, or every one if none is named."""
    return lambda sent: code if not payloads or set(sent.values) & set(payloads) else CONFIRM


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka()


# --- what goes well ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_record_is_written_and_its_arrival_confirmed(kafka: FakeKafka) -> None:
    async with writing(kafka) as desk:
        arrival = desk.add(b"1", b"2")
        assert arrival.open_parts == 1
        await desk.sink.drained()
        assert kafka.values() == [b"1", b"2"]
        assert kafka.logs["k", 0][0].key == b"t"
        assert arrival.open_parts == 0
        assert desk.window.due() == [arrival]
        desk.check()
        assert (desk.books.delivered_messages, desk.state, desk.books.rounds) == (2, None, 1)
        assert desk.sink.unconfirmed_messages() == []


@in_virtual_time
async def test_what_comes_before_kafka_is_there_is_kept_in_order(kafka: FakeKafka) -> None:
    kafka.start_error = KafkaConnectionError("refused")
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: desk.state == "kafka_unreachable")
        desk.add(b"2")
        kafka.start_error = None
        await desk.sink.drained()
        assert kafka.values() == [b"1", b"2"]
        await until(lambda: desk.state is None)
        assert kafka.starts >= 2


@in_virtual_time
async def test_a_kafka_that_does_not_answer_the_start_is_a_reason(kafka: FakeKafka) -> None:
    kafka.start_hangs = True
    async with writing(kafka) as desk:
        await until(lambda: desk.state == "kafka_timeout")


@in_virtual_time
async def test_one_batch_per_partition_is_in_flight_and_the_next_grows_meanwhile(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        for number in range(2, 50):
            desk.add(b"%d" % number)
        await asyncio.sleep(1)
        assert len(kafka.sent) == 1
        kafka.sent[0].answer()
        await until(lambda: len(kafka.sent) == 2)
        assert len(kafka.sent[1].records) == 48
        kafka.sent[1].answer()
        await desk.sink.drained()
        assert len(kafka.values()) == 49


@in_virtual_time
async def test_a_slow_partition_holds_up_no_other(kafka: FakeKafka) -> None:
    kafka.topics["k"] = 8
    slow: list[int] = []
    kafka.judge = lambda sent: STALL if sent.partition in slow else CONFIRM
    async with writing(kafka) as desk:
        desk.add(b"x", topic="slow")
        await desk.sink.drained()
        slow.append(kafka.sent[0].partition)
        stuck = desk.add(b"y", topic="slow")
        arrivals = [desk.add(b"z", topic=f"t{number}") for number in range(40)]
        await until(lambda: sum(arrival.open_parts == 0 for arrival in arrivals) > 30)
        assert stuck.open_parts == 1


@in_virtual_time
async def test_an_arrival_is_confirmed_once_all_its_partitions_are(kafka: FakeKafka) -> None:
    kafka.topics["k"] = 16
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        arrival = desk.arrive(*(Message(b"x", f"t{number}") for number in range(30)))
        parts = arrival.open_parts
        assert parts == 1  # the partitions are not known yet
        await until(lambda: len(kafka.sent) == arrival.open_parts > 1)
        await settled()
        for answered, sent in enumerate(kafka.sent[:], 1):
            assert arrival.open_parts == len(kafka.sent) - answered + 1
            sent.answer()
            await settled()
        assert arrival.open_parts == 0


@in_virtual_time
async def test_what_is_answered_together_is_accounted_for_as_a_whole(kafka: FakeKafka) -> None:
    """Two arrivals of different age, on several partitions: messages, bytes, and how long each waited."""
    kafka.topics["k"] = 16
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        desk.arrive(*(Message(b"x", f"a{number}") for number in range(10)))
        await asyncio.sleep(1)
        free = [number for number in range(200) if _partition(desk, f"b{number}") not in _taken(kafka)][:3]
        desk.arrive(*(Message(b"x", f"b{number}") for number in free))
        await asyncio.sleep(1)
        assert sum(len(sent.records) for sent in kafka.sent) == 13
        for sent in kafka.sent:
            sent.answer()
        await desk.sink.drained()
        assert desk.books.delivered_messages == 13
        assert desk.books.delivered_bytes == sum(sent.size for sent in kafka.sent)
        assert desk.books.waits == [(2.0, 10), (1.0, 3)]


def _partition(desk: Desk, topic: str) -> int:
    main = desk.sink._outbox.main
    return main.lane(desk.sink._outbox._shape.route(topic)).partition


def _taken(kafka: FakeKafka) -> set[int]:
    return {sent.partition for sent in kafka.sent}


@in_virtual_time
async def test_dead_letters_answered_together_are_all_counted(kafka: FakeKafka) -> None:
    kafka.topics["dead"] = 16
    kafka_target = {"topic": "k", "key": "{topic[1]}"}
    async with writing(kafka, on_poison="dead_letter", dead_letter_topic="dead", kafka=kafka_target) as desk:
        desk.arrive(*(Message(b"x", f"short{number}") for number in range(10)))
        await desk.sink.drained()
        assert len({sent.partition for sent in kafka.sent}) > 1
        assert (desk.books.dead_letters, desk.books.delivered_messages) == (10, 0)


@in_virtual_time
async def test_behind_a_failure_the_last_answer_is_waited_for_and_no_longer(kafka: FakeKafka) -> None:
    kafka.topics["k"] = 16
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.arrive(*(Message(b"x", f"t{number}") for number in range(30)))
        await until(lambda: len(kafka.sent) > 1)
        failing, *others = kafka.sent
        kafka.judge = lambda _: CONFIRM
        failing.answer(KafkaError("a failure"))
        await asyncio.sleep(1)
        assert kafka.open_producers
        for sent in others:
            sent.answer()
        began = now()
        await until(lambda: not kafka.open_producers)
        assert now() - began < 0.1
        await desk.sink.drained()
        assert sum(len(kafka.values("k", partition)) for partition in range(16)) == 30


# --- when to send -----------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_what_is_ready_goes_at_once(kafka: FakeKafka) -> None:
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        for number in range(5):
            at = now()
            desk.add(b"%d" % number)
            await desk.sink.drained()
            assert kafka.sent[number].at == at


@in_virtual_time
async def test_what_comes_while_a_batch_is_on_its_way_gathers_in_the_next(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        for number in range(5):
            desk.add(b"%d" % number)
            await asyncio.sleep(0.1)
        assert [sent.values for sent in kafka.sent] == [[b"0"]]
        kafka.sent[0].answer()
        await settled()
        assert [sent.values for sent in kafka.sent] == [[b"0"], [b"1", b"2", b"3", b"4"]]
        kafka.sent[1].answer()
        await desk.sink.drained()


@in_virtual_time
async def test_the_next_batch_is_on_its_way_before_the_last_is_acknowledged(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        desk.add(b"2")
        sent_before: list[int] = []
        desk.books.on_progress = lambda: sent_before.append(len(kafka.sent))
        kafka.sent[0].answer()
        await until(lambda: sent_before)
        assert sent_before == [2]


@in_virtual_time
async def test_what_was_confirmed_is_acknowledged_though_the_producer_takes_no_more(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        desk.add(b"2")

        def refuse(*_: object) -> None:
            raise KafkaError("no more")

        monkeypatch.setattr(kafka.producers[0], "hand_over", refuse)
        kafka.start_error = KafkaError("away")
        kafka.sent[0].answer()
        await until(lambda: desk.books.rounds)
        assert not desk.arrivals[0].open_parts


@in_virtual_time
async def test_no_more_is_in_flight_than_memory_allows(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.kafka.sink._IN_FLIGHT_BYTES", 5_000)
    kafka.topics["k"] = 64
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.arrive(*(Message(b"x" * 1000, f"t{number}") for number in range(40)))
        await asyncio.sleep(1)
        assert 5_000 < desk.sink.in_flight_bytes < 12_000
        kafka.judge = lambda _: CONFIRM
        for sent in kafka.sent[:]:
            sent.answer()
        await desk.sink.drained()
        assert desk.sink.in_flight_bytes == 0


@in_virtual_time
async def test_what_would_make_a_request_too_large_for_kafka_waits(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of several partitions share a request, and a large one may be above the limit of what is in flight."""
    monkeypatch.setattr("server.kafka.sink.DEFAULT_RECORD_LIMIT", 10_000)
    monkeypatch.setattr("server.kafka.sink._IN_FLIGHT_BYTES", 5_000)
    kafka.topics["k"] = 64
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        small, large = Message(b"s" * 4_000, "t0"), Message(b"l" * 8_000, "t1")
        desk.arrive(small, large)
        await asyncio.sleep(1)
        assert [sent.values for sent in kafka.sent] == [[small.payload]]
        kafka.sent[0].answer()
        await settled()
        assert [sent.values for sent in kafka.sent] == [[small.payload], [large.payload]]
        kafka.sent[1].answer()
        await desk.sink.drained()
        assert kafka.starts == 1


# --- a failed batch ---------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_after_a_failed_batch_everything_unconfirmed_goes_out_again_in_order_by_a_new_producer(
    kafka: FakeKafka,
) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1", b"2")
        await until(lambda: kafka.sent)
        desk.add(b"3")
        kafka.judge = lambda _: CONFIRM
        kafka.sent[0].answer(7)
        await desk.sink.drained()
        assert len(kafka.producers) == 2
        assert kafka.producers[0].abandoned
        assert kafka.values() == [b"1", b"2", b"3"]
        assert "kafka_timeout" in desk.books.told
        assert desk.books.reconnects == ["kafka_timeout"]
        await until(lambda: desk.state is None)
        desk.check()


@in_virtual_time
async def test_what_kafka_confirmed_has_a_size_and_a_time_it_took(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1", b"2", b"3")
        await until(lambda: kafka.sent)
        await asyncio.sleep(1.5)
        kafka.sent[0].answer()
        await desk.sink.drained()
        ((seconds, messages),) = desk.books.waits
        assert messages == 3
        assert seconds == pytest.approx(1.5, abs=0.1)
        assert desk.books.delivered_bytes > len(b"123")


@in_virtual_time
async def test_after_a_failed_batch_nothing_more_is_sent_and_the_others_get_two_seconds(kafka: FakeKafka) -> None:
    async with stalled_in_many_lanes(kafka) as desk:
        first = kafka.sent[:]
        first[0].answer(7)
        await settled()
        desk.arrive(*(Message(b"late", f"late{number}") for number in range(40)))
        await asyncio.sleep(1.5)
        assert len(kafka.sent) == len(first)
        first[1].answer()  # within the time they get
        at = now()
        kafka.judge = lambda _: CONFIRM
        await until(lambda: kafka.producers[0].abandoned)
        assert now() - at < 0.6
        await desk.sink.drained()
        written = Counter(value for at in kafka.logs for value in kafka.values(*at))
        assert all(written[value] == 1 for value in first[1].values)
        assert written.total() == 80


@in_virtual_time
async def test_what_was_confirmed_next_to_a_failed_batch_is_acknowledged_at_once(kafka: FakeKafka) -> None:
    async with stalled_in_many_lanes(kafka) as desk:
        kafka.sent[0].answer()
        kafka.sent[1].answer(7)
        await settled()
        assert desk.books.rounds == 1


@in_virtual_time
async def test_a_producer_that_takes_no_batch_is_replaced(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)

        def crashed(*_: Any, **__: Any) -> None:
            raise KafkaError("the sender has crashed")

        monkeypatch.setattr(kafka.producers[0], "hand_over", crashed)
        desk.add(b"1")
        desk.add(b"2")
        await desk.sink.drained()
        assert kafka.values() == [b"1", b"2"]
        assert len(kafka.producers) == 2


@in_virtual_time
async def test_a_producer_whose_client_crashed_is_replaced_and_what_it_had_sent_again(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        kafka.judge = lambda _: CONFIRM
        kafka.crash = KafkaError("aiokafka's metadata task crashed")
        await desk.sink.drained()
        assert kafka.values() == [b"1"]
        assert "kafka_unavailable" in desk.books.told
        assert desk.books.reconnects == ["kafka_unavailable"]
        assert len(kafka.producers) == 2


@in_virtual_time
async def test_a_cancelled_answer_is_a_failure_and_not_the_end_of_the_sink(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        kafka.judge = lambda _: CONFIRM
        kafka.sent[0].answer(asyncio.CancelledError())
        await desk.sink.drained()
        assert kafka.values() == [b"1"]


@in_virtual_time
async def test_while_all_is_answered_it_looks_at_the_cluster_no_more_often_than_while_nothing_flows(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        look = desk.sink._watch.look

        def counted(*arguments: Any, **named: Any) -> None:
            looks.append(now())
            look(*arguments, **named)

        monkeypatch.setattr(desk.sink._watch, "look", counted)
        await asyncio.sleep(60)
        idle = len(looks)
        for _ in range(300):
            desk.add(b"1")
            await asyncio.sleep(0.2)
        await desk.sink.drained()
    assert 60 / 5 <= len(looks) - idle <= idle + 2


@in_virtual_time
async def test_what_the_producer_complains_of_is_heard_whoever_brings_the_messages(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        hand_over = kafka.producers[0].hand_over

        def listening(*arguments: Any) -> None:
            heard.append(current_complaints())
            hand_over(*arguments)

        monkeypatch.setattr(kafka.producers[0], "hand_over", listening)
        assert current_complaints() is not desk.sink._watch._complaints
        desk.add(b"1")
        await desk.sink.drained()
    assert heard == [desk.sink._watch._complaints]


@in_virtual_time
async def test_what_is_cancelled_leaves_no_producer_and_knows_what_is_unfinished(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1", b"2")
        await until(lambda: kafka.sent)
        desk.add(b"3")
        desk.task.cancel()
        await asyncio.wait([desk.task])
        assert [message.payload for _, message in desk.sink.unconfirmed_messages()] == [b"1", b"2", b"3"]
        assert kafka.open_producers == 0
        desk.check()


# --- poison -----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_poison_under_stop_is_found_by_halving_and_stops_the_sink(kafka: FakeKafka) -> None:
    kafka.judge = refuse(87, b"5")
    async with writing(kafka) as desk:
        desk.add(*(b"%d" % number for number in range(8)))
        reason = await desk.stopped()
        assert reason.code == "poison_invalid_record"
        assert "'t'" in reason.detail
        assert kafka.values() == [b"0", b"1", b"2", b"3", b"4"]
        assert [message.payload for _, message in desk.sink.unconfirmed_messages()] == [b"5", b"6", b"7"]
        assert desk.arrivals[0].open_parts == 1


@in_virtual_time
async def test_poison_under_drop_is_counted_and_the_rest_is_written_in_order(kafka: FakeKafka) -> None:
    kafka.judge = refuse(87, b"2", b"6")
    async with writing(kafka, on_poison="drop") as desk:
        arrival = desk.add(*(b"%d" % number for number in range(8)))
        await desk.sink.drained()
        assert kafka.values() == [b"0", b"1", b"3", b"4", b"5", b"7"]
        assert desk.books.drops == {"invalid_record": 2}
        assert arrival.open_parts == 0
        desk.check()


@in_virtual_time
async def test_a_drop_that_is_the_last_record_ends_the_draining(kafka: FakeKafka) -> None:
    kafka.judge = refuse(87)
    async with writing(kafka, on_poison="drop") as desk:
        desk.add(b"1")
        await desk.sink.drained()
        assert desk.arrivals[0].open_parts == 0


@in_virtual_time
async def test_a_dead_letter_has_the_original_bytes_and_is_confirmed_before_the_message_is(kafka: FakeKafka) -> None:
    kafka.judge = lambda sent: STALL if sent.topic == "dead" else refuse(87, b"")(sent)
    async with writing(kafka, on_poison="dead_letter", dead_letter_topic="dead", wrap_as_json=True) as desk:
        await until(lambda: desk.state is None)
        kafka.judge = lambda sent: STALL if sent.topic == "dead" else (87 if b"YmFk" in sent.values[0] else CONFIRM)
        arrival = desk.add(b"bad")
        await until(lambda: any(sent.topic == "dead" for sent in kafka.sent))
        (letter,) = [sent for sent in kafka.sent if sent.topic == "dead"]
        assert arrival.open_parts == 1
        assert desk.books.dead_letters == 0
        letter.answer()
        await desk.sink.drained()
        assert arrival.open_parts == 0
        (written,) = kafka.logs["dead", 0]
        assert (written.value, written.key) == (b"bad", b"t")
        headers = dict(written.headers)
        assert headers["dead_letter.reason"] == b"invalid_record"
        assert headers["mqtt.topic"] == b"t"
        assert (desk.books.dead_letters, desk.books.delivered_messages) == (1, 0)
        desk.check()


@in_virtual_time
async def test_a_refused_dead_letter_stops_the_sink_and_names_both_topics(kafka: FakeKafka) -> None:
    kafka.judge = refuse(87)
    async with writing(kafka, on_poison="dead_letter", dead_letter_topic="dead") as desk:
        arrival = desk.add(b"bad")
        reason = await desk.stopped()
        assert reason.code == "dead_letter_refused"
        assert "'k'" in reason.detail
        assert "'dead'" in reason.detail
        assert arrival.open_parts == 1
        assert [message.payload for _, message in desk.sink.unconfirmed_messages()] == [b"bad"]


@in_virtual_time
async def test_a_missing_dead_letter_topic_holds_up_only_the_dead_letter(kafka: FakeKafka) -> None:
    del kafka.topics["dead"]
    kafka.judge = lambda sent: 87 if sent.topic == "k" and b"bad" in sent.values else CONFIRM
    async with writing(kafka, on_poison="dead_letter", dead_letter_topic="dead") as desk:
        bad = desk.add(b"bad")
        await until(lambda: desk.state == "kafka_topic_missing")
        assert "'dead'" in desk.books.detail
        good = desk.add(b"good")
        await until(lambda: good.open_parts == 0)
        assert bad.open_parts == 1
        kafka.topics["dead"] = 1
        await desk.sink.drained()
        assert kafka.values("dead") == [b"bad"]
        await until(lambda: desk.state is None)


@pytest.mark.parametrize("policy", ["stop", "drop", "dead_letter"])
def test_what_can_not_be_mapped_is_poison_without_asking_kafka(kafka: FakeKafka, policy: str) -> None:
    @in_virtual_time
    async def run() -> None:
        spec: dict[str, Any] = {"on_poison": policy}
        if policy == "dead_letter":
            spec["dead_letter_topic"] = "dead"
        async with writing(kafka, kafka={"topic": "k", "key": "{topic[1]}"}, **spec) as desk:
            good = desk.arrive(Message(b"good", "a/b"))
            bad = desk.arrive(Message(b"bad", "a"))
            if policy == "stop":
                reason = await desk.stopped()
                assert reason.code == "poison_not_mappable"
                assert b"bad" in [message.payload for _, message in desk.sink.unconfirmed_messages()]
                assert bad.open_parts == 1
                return
            await desk.sink.drained()
            assert (good.open_parts, bad.open_parts) == (0, 0)
            assert kafka.values() == [b"good"]
            if policy == "drop":
                assert desk.books.drops == {"not_mappable": 1}
            else:
                assert kafka.values("dead") == [b"bad"]
            desk.check()

    run()


@in_virtual_time
async def test_a_record_over_the_configured_limit_is_never_sent(kafka: FakeKafka) -> None:
    async with writing(kafka, {"message.max.bytes": 2000}, on_poison="drop") as desk:
        desk.add(b"1", b"x" * 3000, b"2")
        await desk.sink.drained()
        assert kafka.values() == [b"1", b"2"]
        assert desk.books.drops == {"message_too_large": 1}
        assert len(kafka.producers) == 1


@in_virtual_time
async def test_a_batch_too_large_of_fine_records_teaches_the_batch_limit_and_loses_nothing(kafka: FakeKafka) -> None:
    kafka.judge = lambda sent: 10 if sent.size > 40_000 else CONFIRM
    async with writing(kafka) as desk:
        payloads = [b"%03d" % number + b"x" * 1000 for number in range(200)]
        desk.add(*payloads)
        await desk.sink.drained()
        assert kafka.values() == payloads
        assert kafka.producers[-1].max_batch_size < 200_000
        failures = len(kafka.producers)
        more = [b"%03d" % number + b"y" * 1000 for number in range(200)]
        desk.add(*more)
        await desk.sink.drained()
        assert kafka.values() == payloads + more
        assert len(kafka.producers) - failures <= 2, "the limit was not learnt"


@in_virtual_time
async def test_the_record_limit_is_learnt_from_a_refusal(kafka: FakeKafka) -> None:
    kafka.judge = lambda sent: 10 if any(len(value) > 5000 for value in sent.values) else CONFIRM
    async with writing(kafka, on_poison="drop") as desk:
        desk.add(b"x" * 6000)
        await desk.sink.drained()
        await until(lambda: kafka.open_producers)
        producers = len(kafka.producers)
        desk.add(b"1", b"x" * 7000, b"2")
        await desk.sink.drained()
        assert len(kafka.producers) == producers, "it tried what Kafka had refused"
        assert kafka.values() == [b"1", b"2"]
        assert desk.books.drops == {"message_too_large": 2}


@in_virtual_time
async def test_an_invalid_topic_stops_the_sink(kafka: FakeKafka) -> None:
    kafka.judge = refuse(17)
    async with writing(kafka, on_poison="drop") as desk:
        desk.add(b"1")
        assert (await desk.stopped()).code == "kafka_invalid_topic"
        assert [message.payload for _, message in desk.sink.unconfirmed_messages()] == [b"1"]


@in_virtual_time
async def test_an_unknown_code_is_bisected_after_three_failures_and_never_dropped(kafka: FakeKafka) -> None:
    kafka.judge = refuse(9999, b"5")
    async with writing(kafka, on_poison="drop") as desk:
        desk.add(*(b"%d" % number for number in range(8)))
        await until(lambda: kafka.values() == [b"0", b"1", b"2", b"3", b"4"])
        assert [len(sent.records) for sent in kafka.sent[:4]] == [8, 8, 8, 4]
        await until(lambda: kafka.sent[-1].values == [b"5"])
        assert desk.state == "kafka_error"
        await asyncio.sleep(120)
        assert desk.books.drops == {}
        assert kafka.values() == [b"0", b"1", b"2", b"3", b"4"]
        kafka.judge = lambda _: CONFIRM
        await desk.sink.drained()
        assert kafka.values() == [b"%d" % number for number in range(8)]


# --- reasons ----------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_three_seconds_without_an_answer_are_a_reason_that_the_answer_ends(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        at = now()
        await until(lambda: desk.state == "kafka_stalled")
        assert 3.0 <= now() - at < 4.0
        kafka.sent[0].answer()
        await until(lambda: desk.state is None)
        assert len(kafka.producers) == 1


_EXPIRED = Reason("kafka_certificate_expired", "the certificate is over")


class Complaining(FakeKafka):
    """A Kafka to which no connection can be made, which aiokafka finds out by itself."""

    async def start(self, max_batch_size: int) -> FakeProducer:
        self.complaints = current_complaints()
        self.complaints.note_connection(_EXPIRED)
        return await super().start(max_batch_size)


@in_virtual_time
async def test_why_no_connection_can_be_made_is_the_reason_for_all_that_comes_of_it() -> None:
    """A producer that does not start, one that takes long, one that gets no answer, and one that gets no metadata."""
    for trouble in ({"start_error": KafkaConnectionError("closed")}, {"start_hangs": True}, {"judge": lambda _: STALL}):
        async with writing(Complaining(**trouble)) as desk:
            desk.add(b"1")
            await until(lambda: desk.state == _EXPIRED.code)
            assert desk.books.detail == _EXPIRED.detail
    kafka = Complaining()
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        kafka.reachable = False
        for _ in range(20):
            kafka.complaints.note_connection(_EXPIRED)
            await asyncio.sleep(1)
        assert desk.state == _EXPIRED.code


@in_virtual_time
async def test_a_refusal_explains_the_stall_of_no_batch_that_was_sent_after_it() -> None:
    kafka = Complaining()
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        desk.add(b"1")
        kafka.complaints._refusals["k"] = (now(), for_code(6))
        await desk.sink.drained()
        await asyncio.sleep(1)
        kafka.complaints.note_connection(None)
        kafka.judge = lambda _: STALL
        desk.add(b"2")
        await until(lambda: desk.state == "kafka_stalled")
        assert "kafka_no_leader" not in desk.books.told


@in_virtual_time
async def test_what_kafka_itself_answers_counts_more_than_a_connection_to_another_broker() -> None:
    async with writing(Complaining(start_error=for_code(31)())) as desk:
        await until(lambda: desk.state == "kafka_cluster_not_authorized")


@in_virtual_time
async def test_a_stall_behind_a_missing_leader_says_so(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    kafka.leaderless = {"k": [0]}
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: desk.state == "kafka_no_leader")
        assert "[0]" in desk.books.detail


@in_virtual_time
async def test_a_missing_leader_stays_the_reason_when_aiokafka_gives_up_and_a_new_producer_tries(
    kafka: FakeKafka,
) -> None:
    """Batches for the partition next to it land, but all is well only when nothing waits for a leader."""
    kafka.topics["k"], kafka.leaderless = 2, {"k": [0]}
    kafka.judge = lambda sent: STALL if sent.partition == 0 else CONFIRM

    def give_up() -> None:
        (stuck,) = [each for each in kafka.sent if each.producer is kafka.producers[-1] and each.partition == 0]
        stuck.answer(KafkaTimeoutError())

    async with writing(kafka) as desk:
        for number in range(20):
            desk.add(b"%d" % number, topic=f"t/{number}")
        await until(lambda: desk.state == "kafka_no_leader")
        beside = next(record.key for record in kafka.logs["k", 1] if record.key is not None).decode()
        desk.books.told.clear()
        for producers in (1, 2):
            await asyncio.sleep(40)
            give_up()
            await until(lambda: len(kafka.producers) > producers)  # noqa: B023 - awaited right here
            desk.add(*[b"more"] * 3, topic=beside)
            await asyncio.sleep(10)
        assert desk.state == "kafka_no_leader"
        assert None not in desk.books.told
        kafka.leaderless, kafka.judge = {}, lambda _: CONFIRM
        give_up()
        await desk.sink.drained()
        await until(lambda: desk.state is None)


@in_virtual_time
async def test_a_missing_topic_is_a_reason_and_what_waits_for_it_is_written_once_it_is_there(kafka: FakeKafka) -> None:
    del kafka.topics["k"]
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: desk.state == "kafka_topic_missing")
        desk.add(b"2")
        kafka.topics["k"] = 3
        await desk.sink.drained()
        await until(lambda: desk.state is None)
        assert [kafka.values("k", at) for at in range(3) if kafka.values("k", at)] == [[b"1", b"2"]]


@in_virtual_time
async def test_a_hidden_topic_says_what_to_grant(kafka: FakeKafka) -> None:
    kafka.hidden = {"k"}
    async with writing(kafka):
        pass
    async with writing(kafka) as desk:
        await until(lambda: desk.state == "kafka_not_authorized")


@in_virtual_time
async def test_an_idle_sink_notices_that_kafka_is_away_and_back(kafka: FakeKafka) -> None:
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        kafka.reachable = False
        await until(lambda: desk.state == "kafka_unreachable")
        kafka.reachable = True
        kafka.producers[0]._asked[0].set_result(False)
        await until(lambda: desk.state is None)
        assert "kafka:9092" in desk.books.detail or desk.books.told[-2] == "kafka_unreachable"


@in_virtual_time
async def test_what_one_idle_sink_notices_hundreds_know_soon(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka.sinks = 400  # each asks every 100 s, 20 of them at every fifth second
    kafka.install(monkeypatch)
    cluster = Cluster("kafka:9092", translate({}))
    mapping = Mapping.model_validate({"name": "m", "mqtt": {"topic": "#"}, "kafka": {"topic": "k"}})
    books = [Books() for _ in range(kafka.sinks)]
    sinks = [Sink(cluster, mapping, AckWindow(), outcomes=each, random=lambda: 0.0) for each in books]
    tasks = [asyncio.create_task(sink.run()) for sink in sinks]

    def all_tell(reason: str | None) -> bool:
        return all(each.told and each.told[-1] == reason for each in books)

    await until(lambda: all_tell(None))
    await asyncio.sleep(100.5)
    kafka.reachable = False
    began = now()
    await until(lambda: all_tell("kafka_unreachable"))
    assert now() - began < 5 + 3 + 4 + 3 + 1
    kafka.reachable = True
    for producer in kafka.producers:
        for asked in producer._asked:
            if not asked.done():
                asked.set_result(False)
    await until(lambda: all_tell(None))
    await ended(*tasks)


# --- partitions that change -------------------------------------------------------------------------------------------


@in_virtual_time
async def test_more_partitions_are_used_once_everything_before_is_confirmed(kafka: FakeKafka) -> None:
    kafka.judge = lambda _: STALL
    async with writing(kafka) as desk:
        desk.add(b"1")
        await until(lambda: kafka.sent)
        kafka.producers[0].known["k"] = kafka.topics["k"] = 16
        await asyncio.sleep(1)
        desk.arrive(*(Message(b"2", f"t{number}") for number in range(20)), Message(b"2", "t"))
        await asyncio.sleep(2)
        assert len(kafka.sent) == 1
        kafka.judge = lambda _: CONFIRM
        kafka.sent[0].answer()
        await desk.sink.drained()
        assert len({sent.partition for sent in kafka.sent}) > 3
        desk.check()


@in_virtual_time
async def test_partitions_out_of_sight_keep_their_records_back(kafka: FakeKafka) -> None:
    async with writing(kafka) as desk:
        await until(lambda: desk.state is None)
        kafka.producers[0].known["k"] = 0
        desk.add(b"1")
        await asyncio.sleep(0.1)
        assert kafka.sent == []
        await desk.sink.drained()  # as soon as metadata shows the topic again
        assert kafka.values() == [b"1"]


@in_virtual_time
async def test_a_topic_created_again_with_fewer_partitions_gets_everything_in_order(kafka: FakeKafka) -> None:
    kafka.topics["k"] = 8
    kafka.judge = lambda _: 7
    async with writing(kafka) as desk:
        for number in range(30):
            desk.add(b"%d" % number, topic=f"t{number % 5}")
        await until(lambda: len(kafka.producers) > 1)
        kafka.topics["k"] = 2
        kafka.judge = lambda _: CONFIRM
        await desk.sink.drained()
        desk.check()
        written = [value for at in range(2) for value in kafka.values("k", at)]
        assert sorted(written, key=int) == [b"%d" % number for number in range(30)]
        assert all(arrival.open_parts == 0 for arrival in desk.arrivals)


@in_virtual_time
async def test_a_batch_for_a_partition_that_is_gone_does_not_wait_for_aiokafka_to_give_it_up(kafka: FakeKafka) -> None:
    kafka.topics["k"] = 8
    kafka.judge = lambda _: STALL  # aiokafka tries again and again, for 40 s
    async with writing(kafka) as desk:
        for number in range(30):
            desk.add(b"%d" % number, topic=f"t{number % 5}")
        await until(lambda: kafka.sent)
        assert max(sent.partition for sent in kafka.sent) >= 2
        kafka.judge = lambda _: CONFIRM
        kafka.producers[0].known["k"] = kafka.topics["k"] = 2
        began = now()
        await desk.sink.drained()
        assert now() - began < 5
        assert "kafka_partition_gone" in desk.books.told
        desk.check()
        written = [value for at in range(2) for value in kafka.values("k", at)]
        assert sorted(written, key=int) == [b"%d" % number for number in range(30)]


# --- whatever happens -------------------------------------------------------------------------------------------------

_VERDICT = st.sampled_from([CONFIRM] * 5 + [STALL, LOSE_ANSWER, 7, 9999, 47, KafkaError("x"), 10])
_EVENT = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 12), st.integers(0, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.004, 0.3, 3.0]), st.just(0)),
    st.tuples(st.just("answer"), st.sampled_from([0, 1]), st.just(0)),
    st.tuples(st.just("partitions"), st.integers(1, 5), st.just(0)),
)


def _number(value: bytes) -> int:
    return int(value.partition(b":")[2])


class _History:
    """What happened to one sink, and whether it kept its promises."""

    def __init__(self, desk: Desk, poison: set[int]) -> None:
        self.desk = desk
        self.poison = poison
        self.received: dict[str, list[int]] = defaultdict(list)
        self.count = 0
        self.resized = False

    def is_poison(self, sent: Sent) -> bool:
        return sent.topic == "k" and any(_number(value) in self.poison for value in sent.values)

    async def step(self, what: str, amount: Any, topic: int) -> None:
        if what == "add":
            self.desk.arrive(*(self._message(topic) for _ in range(amount)))
        elif what == "wait":
            await asyncio.sleep(amount)
        elif what == "answer":
            for sent in self.desk.kafka.sent[-3:]:
                sent.answer(CONFIRM if amount else 7)
        else:
            self.resized = True
            self.desk.kafka.topics["k"] = amount
        self.desk.check()

    def _message(self, topic: int) -> Message:
        name = f"t{topic}" if self.count % 3 else f"u{topic}"
        message = Message(b"%b:%d" % (name.encode(), self.count), name)
        self.received[name].append(self.count)
        self.count += 1
        return message

    async def finish(self) -> None:
        """Kafka is well again."""
        desk = self.desk
        desk.kafka.judge = lambda sent: 87 if self.is_poison(sent) else CONFIRM
        await asyncio.sleep(10)
        for sent in desk.kafka.sent:
            sent.answer()
        await desk.sink.drained()
        desk.check()
        assert desk.sink.unconfirmed == 0
        assert all(arrival.open_parts == 0 for arrival in desk.arrivals)
        assert desk.window.due() == desk.arrivals
        bad = self.poison & set(range(self.count))
        assert desk.books.drops.total() + desk.books.dead_letters == len(bad)
        for name, numbers in self.received.items():
            self._check_topic(name, [each for each in numbers if each not in bad])

    def _check_topic(self, name: str, expected: list[int]) -> None:
        found = []
        for (topic, _), log in self.desk.kafka.logs.items():
            here = [_number(record.value) for record in log if topic == "k" and record.key == name.encode()]
            if here:
                found.append(list(dict.fromkeys(here)))
        if len(found) > 1:
            assert self.resized
            assert {number for here in found for number in here} == set(expected)
        else:
            assert (found[0] if found else []) == expected, name


@settings(deadline=None, max_examples=120)
@given(
    events=st.lists(_EVENT, max_size=25),
    verdicts=st.lists(_VERDICT, max_size=20),
    poison=st.sets(st.integers(0, 60), max_size=3),
    dead=st.booleans(),
)
def test_random_failures_lose_nothing_keep_the_order_and_confirm_every_arrival_once(
    events: list[tuple[str, Any, int]], verdicts: list[object], poison: set[int], dead: bool
) -> None:
    @in_virtual_time
    async def run() -> None:
        kafka = FakeKafka({"k": 2, "dead": 1})
        script = iter(verdicts)
        spec: dict[str, Any] = {"on_poison": "dead_letter", "dead_letter_topic": "dead"} if dead else {}
        async with writing(kafka, **{"on_poison": "drop", **spec}) as desk:
            history = _History(desk, poison)

            def judge(sent: Sent) -> object:
                if history.is_poison(sent):
                    return 87
                verdict = next(script, CONFIRM)
                # A single record that is too large is poison, which is another rule.
                return CONFIRM if verdict == 10 and len(sent.records) == 1 else verdict

            kafka.judge = judge
            for event in events:
                await history.step(*event)
            await history.finish()

    run()
