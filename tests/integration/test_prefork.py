"""A service that was forked (tests/prefork.py) is what `python -m server.cli` would be, or other tests prove less."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.prefork import Prefork
from tests.service import UNMEASURED, BrokerError, Service

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers import KafkaCluster, MqttBroker

OWN_INTERPRETER = (sys.executable, "-m", "server.cli")
MEGABYTE = 1_000_000


async def test_it_has_a_session_of_its_own_and_as_much_memory_as_in_an_interpreter_of_its_own(
    mosquitto: MqttBroker, kafka: KafkaCluster, tmp_path: Path
) -> None:
    memory = []
    for name, command in (("forked", None), ("own", OWN_INTERPRETER)):
        service = Service(tmp_path / name, mqtt_broker=mosquitto, kafka_broker=kafka, env=UNMEASURED, command=command)
        async with service:
            await service.wait_ready()
            assert os.getsid(service.pid) == service.pid
            memory.append(service.private_memory())
    forked, own = memory
    assert forked == pytest.approx(own, abs=3 * MEGABYTE)


async def test_its_end_is_told_whatever_it_was(mosquitto: MqttBroker, kafka: KafkaCluster, tmp_path: Path) -> None:
    service = Service(tmp_path, mqtt_broker=mosquitto, kafka_broker=kafka)
    async with service:
        await service.wait_ready()
        assert service.running
        service.kill9()
        assert (service.running, service.exit_code) == (False, -9)
        with pytest.raises(ProcessLookupError):
            service.private_memory()
        service.start()
        await service.wait_ready()
        assert await service.sigterm() == 0
        service.start(env={"MKF_LOG_FORMAT": "none such"})
        assert service.wait(10) == 2
    assert "MKF_LOG_FORMAT" in service.log()
    with pytest.raises(BrokerError, match="ended with 2 before: ready"):
        await service.wait_ready()


def test_those_who_ask_hear_when_nobody_forks_any_more() -> None:
    prefork = Prefork()
    for _ in range(2):  # and can ask again
        with pytest.raises(BrokerError, match="prefork: has ended"):
            prefork.ask({"ended": -1 << 40})  # no pid: waitpid refuses it, and the process ends with that
