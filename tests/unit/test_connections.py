"""The `mqtt` and `kafka` sections."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.core.connections import KafkaConnection, MqttConnection


def _mqtt(**fields: Any) -> MqttConnection:
    return MqttConnection.model_validate({"host": "h"} | fields)


def test_the_defaults_are_those_of_the_design() -> None:
    mqtt = _mqtt()

    assert (mqtt.port, mqtt.client_id, mqtt.protocol, mqtt.transport) == (1883, "", "auto", "tcp")
    assert (mqtt.session_expiry, mqtt.keep_alive) == (86_400, 15)
    assert mqtt.address == "h:1883"
    assert KafkaConnection().address == "localhost:9092"


@pytest.mark.parametrize(
    ("written", "seconds"), [(15, 15), ("15", 15), ("15s", 15), ("10m", 600), (" 2 h ", 7200), ("7d", 604_800)]
)
def test_durations_are_read_as_seconds(written: str | int, seconds: int) -> None:
    assert _mqtt(session_expiry=written).session_expiry == seconds


@pytest.mark.parametrize("written", [True, 1.5, None, "", "s", "1w", "-1s", "1h30m", 0, 2**32])
def test_what_is_no_duration_or_out_of_range_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        _mqtt(session_expiry=written)


@pytest.mark.parametrize(("written", "protocol"), [(5, "5"), ("5", "5"), ("3.1.1", "3.1.1"), ("auto", "auto")])
def test_a_protocol_may_be_written_as_a_number(written: Any, protocol: str) -> None:
    assert _mqtt(protocol=written).protocol == protocol


@pytest.mark.parametrize("written", [True, 3.1, "4", None])
def test_an_unknown_protocol_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"'auto', '5' or '3\.1\.1'"):
        _mqtt(protocol=written)


def test_a_client_certificate_needs_its_key() -> None:
    assert _mqtt(tls={"ca_cert": "ca", "client_cert": "c", "client_key": "k"}).tls is not None
    with pytest.raises(ValidationError, match="must be set together"):
        _mqtt(tls={"ca_cert": "ca", "client_cert": "c"})


@pytest.mark.parametrize(
    "fields", [{"client_id": "a\0"}, {"client_id": "c" * 1_025}, {"credentials": {"username": "a\0"}}]
)
def test_text_that_mqtt_cannot_carry_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"null character|at most 1024 bytes"):
        _mqtt(**fields)


def test_a_client_id_has_a_limit() -> None:
    assert _mqtt(client_id="c" * 1_024).client_id
    with pytest.raises(ValidationError, match="a client id may have at most 1024 bytes, this one has 1025"):
        _mqtt(client_id="c" * 1_025)


def test_secrets_do_not_show() -> None:
    mqtt = _mqtt(credentials={"username": "u", "password": "hunter2"})
    kafka = KafkaConnection(config={"sasl.password": "hunter2"})

    assert "hunter2" not in f"{mqtt!r} {mqtt} {kafka!r} {kafka} {mqtt.model_dump_json()}"
    with pytest.raises(ValidationError) as refused:
        _mqtt(credentials={"username": "u", "password": ["hunter2"]})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["bootstrap.servers", "metadata.broker.list"])
def test_kafkas_address_is_what_the_options_say(name: str) -> None:
    assert KafkaConnection(config={name: "a:1,b:2"}).address == "a:1,b:2"


def test_an_ipv6_address_is_in_brackets_before_its_port() -> None:
    assert _mqtt(host="::1").address == "[::1]:1883"
    assert KafkaConnection(bootstrap_server="::1", port=1).address == "[::1]:1"
