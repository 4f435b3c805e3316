"""aiokafka's complaints: the latest for the status, each text once a minute for the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import NotEnoughReplicasError

from server.kafka import errorlog
from server.kafka.errorlog import ErrorLog

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_nothing_is_remembered_before_anything_is_said() -> None:
    assert ErrorLog().latest() is None


def test_a_text_goes_through_once_a_minute(clock: Clock) -> None:
    log = ErrorLog()
    assert log.filter(_said("no %s", "leader"))
    clock.now += 59.9
    assert not log.filter(_said("no leader"))
    assert log.filter(_said("no broker"))
    clock.now += 0.1
    assert log.filter(_said("no leader"))


def test_what_is_not_a_complaint_passes_and_is_not_remembered(clock: Clock) -> None:
    log = ErrorLog()
    for _ in range(2):
        assert log.filter(_said("connected", level=logging.INFO))
    assert log.latest() is None
    assert clock.now == 1_000.0


def test_the_latest_complaint_is_known_for_a_few_seconds_even_if_it_was_not_shown(clock: Clock) -> None:
    log = ErrorLog()
    log.filter(_said("no leader"))
    log.filter(_said("no broker", level=logging.ERROR))
    clock.now += 5.0
    log.filter(_said("no leader"))
    clock.now += 10.0
    assert log.latest() == "no leader"
    clock.now += 0.1
    assert log.latest() is None


def test_old_texts_are_forgotten(clock: Clock) -> None:
    log = ErrorLog()
    for number in range(1_000):
        clock.now += 1.0
        log.filter(_said(f"attempt {number}"))
    assert len(log._shown) <= 60


@pytest.mark.parametrize("name", _LOGGERS)
def test_it_hears_every_logger_of_aiokafka_that_complains(installed: ErrorLog, name: str) -> None:
    logging.getLogger(name).warning("it is %s", name)
    assert installed.latest() == f"it is {name}"


def _retried(topic: str, error: object) -> logging.LogRecord:
    text = "Got error produce response on topic-partition %s, retrying. Error: %s"
    return _said(text, TopicPartition(topic, 1), error)


def test_the_error_behind_a_batch_that_is_tried_again_is_known_for_its_topic_and_for_some_seconds(clock: Clock) -> None:
    log = ErrorLog()
    assert log.refusal("k") is None
    log.filter(_retried("k", NotEnoughReplicasError))
    log.filter(_retried("other", "Kafka's own words"))
    assert log.refusal("k") is NotEnoughReplicasError
    assert log.refusal("other") is None
    clock.now += 10.1
    assert log.refusal("k") is None


def test_it_listens_once(installed: ErrorLog) -> None:
    installed.install()
    assert [logging.getLogger(name).filters.count(installed) for name in _LOGGERS] == [1, 1, 1, 1]
