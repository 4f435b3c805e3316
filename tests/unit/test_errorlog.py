"""aiokafka's complaints: the latest for the status, each text once a minute for the log."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from aiokafka import TopicPartition
from aiokafka.errors import NotEnoughReplicasError, SaslAuthenticationFailed

from server.core.kafka_options import translate
from server.core.lifecycle import Reason
from server.kafka import errorlog
from server.kafka.errorlog import Complaints, ErrorLog, current_complaints, listen
from server.kafka.producer import Cluster, Producer
from tests.answers import send
from tests.realtime import until
from tests.scriptedkafka import scripted_kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOGGERS = ["aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.producer.sender"]


class Clock:
    """A clock that the test turns."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(errorlog, "time", clock)
    return clock


@pytest.fixture
def installed() -> Iterator[ErrorLog]:
    log = ErrorLog()
    log.install()
    yield log
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(log)


def _said(text: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("aiokafka.conn", level, "", 0, text, args, None)


def test_a_text_goes_through_once_a_minute(clock: Clock) -> None:
    log = ErrorLog()
    assert log.filter(_said("no %s", "leader"))
    clock.now += 59.9
    assert not log.filter(_said("no leader"))
    assert log.filter(_said("no broker"))
    clock.now += 0.1
    assert log.filter(_said("no leader"))


def test_what_is_not_a_complaint_passes_and_is_not_remembered(clock: Clock) -> None:
    log, complaints = ErrorLog(), listen()
    for _ in range(2):
        assert log.filter(_said("connected", level=logging.INFO))
    assert complaints.latest() is None
    assert complaints.code() is None
    assert clock.now == 1_000.0


def test_the_latest_complaint_is_known_for_a_few_seconds_even_if_it_was_not_shown(clock: Clock) -> None:
    log, complaints = ErrorLog(), listen()
    log.filter(_said("no leader"))
    log.filter(_said("no broker", level=logging.ERROR))
    clock.now += 5.0
    log.filter(_said("no leader"))
    clock.now += 10.0
    assert complaints.latest() == "no leader"
    clock.now += 0.1
    assert complaints.latest() is None


def test_why_the_latest_attempt_to_connect_failed_is_known_for_a_few_seconds(clock: Clock) -> None:
    complaints, reason = listen(), Reason("kafka_tls", "no cipher in common")
    assert complaints.connection() is None
    current_complaints().note_connection(reason)
    clock.now += 10.0
    assert complaints.connection() == reason
    clock.now += 0.1
    assert complaints.connection() is None
    current_complaints().note_connection(reason)
    current_complaints().note_connection(None)
    assert complaints.connection() is None


def test_where_nobody_listens_what_is_noted_goes_nowhere() -> None:
    def note() -> Reason | None:
        current_complaints().note_connection(Reason("kafka_tls", "no cipher in common"))
        return current_complaints().connection()

    assert contextvars.Context().run(note) is None


def test_that_a_password_goes_in_the_clear_is_no_complaint_and_was_said_at_the_start() -> None:
    log, complaints = ErrorLog(), listen()
    assert not log.filter(_said("Sending username and password in the clear"))
    assert complaints.latest() is None


def test_old_texts_are_forgotten(clock: Clock) -> None:
    log = ErrorLog()
    for number in range(1_000):
        clock.now += 1.0
        log.filter(_said(f"attempt {number}"))
    assert len(log._shown) <= 60


@pytest.mark.parametrize("name", _LOGGERS)
def test_it_hears_every_logger_of_aiokafka_that_complains(installed: ErrorLog, name: str) -> None:
    del installed
    complaints = listen()
    logging.getLogger(name).warning("it is %s", name)
    assert complaints.latest() == f"it is {name}"


def _retried(topic: str, error: object) -> logging.LogRecord:
    text = "Got error produce response on topic-partition %s, retrying. Error: %s"
    return _said(text, TopicPartition(topic, 1), error)


def test_the_error_behind_a_batch_that_is_tried_again_is_known_for_its_topic_and_for_some_seconds(clock: Clock) -> None:
    log, complaints = ErrorLog(), listen()
    assert complaints.refusal("k", 0.0) is None
    log.filter(_retried("k", NotEnoughReplicasError))
    log.filter(_retried("other", "Kafka's own words"))
    assert complaints.refusal("k", 0.0) is NotEnoughReplicasError
    assert complaints.refusal("other", 0.0) is None
    assert complaints.refusal("k", clock.now) is NotEnoughReplicasError
    assert complaints.refusal("k", clock.now + 0.1) is None, "it explains a batch that was sent later"
    clock.now += 10.1
    assert complaints.refusal("k", 0.0) is None


async def test_each_producer_is_blamed_for_its_own_complaints_only() -> None:
    log = ErrorLog()

    async def producer(said: str) -> Complaints:
        complaints = listen()
        # As aiokafka does: it is a task of its own that complains.
        await asyncio.create_task(_complain(log, said))
        return complaints

    one, other = await asyncio.gather(
        asyncio.create_task(producer("connection closed")), asyncio.create_task(producer("no leader"))
    )
    assert one.latest() == "connection closed"
    assert other.latest() == "no leader"


async def _complain(log: ErrorLog, said: str) -> None:
    await asyncio.sleep(0)
    log.filter(_said(said))


def test_what_a_producer_says_when_it_is_ended_goes_nowhere() -> None:
    log, complaints = ErrorLog(), listen()
    log.filter(_said("no leader"))
    complaints.over = True
    assert not log.filter(_said("connection closed"))
    assert complaints.latest() == "no leader"


def test_the_error_behind_a_complaint_is_known_by_its_code_or_at_least_by_its_name() -> None:
    log, complaints = ErrorLog(), listen()
    log.filter(_said("Unable connect to %s: %s", "a:1", SaslAuthenticationFailed("wrong password")))
    assert complaints.code() == 58
    log.filter(_said("Unable connect to %s: %s", "a:1", ConnectionResetError()))
    assert complaints.code() is None
    assert complaints.latest() == "Unable connect to a:1: ConnectionResetError"


def test_it_listens_once(installed: ErrorLog) -> None:
    installed.install()
    assert [logging.getLogger(name).filters.count(installed) for name in _LOGGERS] == [1, 1, 1, 1]


async def _refused_while_another_listens() -> None:
    async with scripted_kafka({0: 1}) as kafka:
        mine = listen()
        producer = await Producer.start(Cluster(kafka.bootstrap, translate({})), max_batch_size=1_000)
        await producer.fetch_metadata(["t"])
        await send(producer, "t", 0, b"v")
        theirs = listen()
        kafka.verdict = NotEnoughReplicasError.errno
        refused = send(producer, "t", 0, b"v")
        await until(lambda: mine.refusal("t", since=0.0))
        assert mine.refusal("t", since=0.0) is NotEnoughReplicasError
        assert theirs.latest() is None
        await producer.abandon()
        assert refused.exception() is not None


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.usefixtures("installed")
def test_kafkas_refusal_is_the_complaint_of_the_producer_whoever_listens_later(loop: Callable[[], Any]) -> None:
    """Each event loop keeps the context of who connected for what a connection calls."""
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_refused_while_another_listens())
