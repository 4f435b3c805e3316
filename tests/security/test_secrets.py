"""No secret of the configuration shows anywhere: canaries in all of them, and everything the service says is searched.

Both brokers fail in the ways that make libraries talk: names that don't exist, credentials that are refused.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.faults.mock_kafka import MockKafka
from tests.forwarding import act, pause
from tests.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.brokers import Mosquitto

IN_ENVIRONMENT = "canary-mqtt-4f1c86"
IN_FILE = "canary-kafka-9d20b7"
WRITTEN = "canary-key-e85a13"
_NAME = "m"
_MAPPING = {"name": _NAME, "mqtt": {"topic": "secrets/#"}, "kafka": {"topic": "secrets"}}
_BODIES: tuple[Any, ...] = ({}, _MAPPING, {"mapping": _MAPPING, "message": {"topic": "secrets/a"}}, ["m"])


def _spellings(secret: str) -> list[bytes]:
    """The secret as it is, and in base64 at every position in three bytes, without what its neighbours decide."""
    encoded = [base64.b64encode(b" " * shift + secret.encode())[4:-4] for shift in range(3)]
    return [secret.encode(), quote(secret).encode(), secret.encode().hex().encode(), *encoded]


def _shown(data: bytes) -> list[str]:
    return [
        secret
        for secret in (IN_ENVIRONMENT, IN_FILE, WRITTEN)
        if any(spelling in data for spelling in _spellings(secret))
    ]


async def _everything_said(service: Service) -> bytes:
    """The answer of every route that only reads, and of some that change something or are wrong."""
    document = (await service.api.get("/openapi.json")).json()
    answers = []
    for path, operations in document["paths"].items():
        address = path.replace("{name}", _NAME)
        if "get" in operations:
            answers.append(await service.api.get(address))
        for method in sorted({"post", "put", "patch"} & operations.keys()):
            answers += [await service.api.request(method, address, json=body) for body in _BODIES]
    answers += [await service.api.get(address) for address in ("/docs", "/nothing", "/api/v1/mappings?limit=x")]
    assert len(answers) > 30
    return b"\n".join(b"%r %b" % (dict(answer.headers), answer.content) for answer in answers)


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("failure", ["refused", "unknown hosts"])
async def test_no_secret_shows_in_what_the_service_says_logs_or_keeps(
    tmp_path: Path, own_mosquitto: Callable[..., Mosquitto], failure: str, log_format: str
) -> None:
    mosquitto = own_mosquitto(extra=["password_file /dev/null", "allow_anonymous false"])
    secret_file = tmp_path / "kafka-password"
    secret_file.write_text(IN_FILE + "\n")
    mqtt: dict[str, Any] = {"credentials": {"username": "u", "password": "${MQTT_PASSWORD}"}}
    kafka: dict[str, Any] = {
        "config": {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "u",
            "sasl.password": f"${{file:{secret_file}}}",
        }
    }
    if failure == "unknown hosts":
        mqtt["host"] = kafka["bootstrap_server"] = "nowhere.invalid"
    folder = tmp_path / "service"
    with MockKafka() as broker:
        service = Service(
            folder,
            mqtt_broker=mosquitto,
            kafka_broker=broker,
            forwarding=[_MAPPING],
            mqtt=mqtt,
            kafka=kafka,
            env={"MQTT_PASSWORD": IN_ENVIRONMENT, "MKF_LOG_LEVEL": "debug", "MKF_LOG_FORMAT": log_format},
        )
        async with service:
            await service.wait_ready()
            status = await service.wait_state(_NAME, "retrying")
            said = await _everything_said(service)
            await pause(service)
            await act(service, "reset-session")
            await resume_unheard(service)
            said += await _everything_said(service)
    assert status["reason"].partition(":")[0] in {"mqtt_not_authorized", "mqtt_authentication", "mqtt_unreachable"} | {
        "kafka_unreachable",
        "kafka_authentication",
        "kafka_unavailable",
        "kafka_timeout",
    }, status
    assert _shown(said) == []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            assert _shown(path.read_bytes()) == [], path
    assert (folder / "mkf.db").stat().st_size
    assert service.log()


async def resume_unheard(service: Service) -> None:
    """Resume, and wait until it retries again."""
    await act(service, "resume")
    await service.wait_state(_NAME, "retrying")


async def test_a_key_that_can_not_be_read_does_not_show_its_password(
    tmp_path: Path, own_mosquitto: Callable[..., Mosquitto]
) -> None:
    """The service refuses to start, and says why, or runs without Kafka: in neither does the password show."""
    key = tmp_path / "key.pem"
    key.write_text(f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{WRITTEN}\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with MockKafka() as broker:
        service = Service(
            tmp_path / "service",
            mqtt_broker=own_mosquitto(),
            kafka_broker=broker,
            forwarding=[_MAPPING],
            kafka={
                "config": {
                    "security.protocol": "SSL",
                    "ssl.key.location": str(key),
                    "ssl.certificate.location": str(key),
                    "ssl.key.password": WRITTEN,
                }
            },
            env={"MKF_LOG_LEVEL": "debug"},
        )
        async with service:
            await service.wait_ready()
            await service.wait_state(_NAME, "retrying")
            assert _shown(await _everything_said(service)) == []
    assert _shown(service.log().encode()) == []
