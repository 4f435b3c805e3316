"""Logs: our events and the libraries' records, for people and for machines."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from typing import TYPE_CHECKING, Any, Literal

import pytest
import structlog
from aiokafka.conn import create_conn

from server.core.tokens import SECRET_BYTES, new_token
from server.logs import configure_logging
from server.mqtt import v311

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What one test configures is no other's business."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noisy = {
        name: logging.getLogger(name).level for name in ("server", "uvicorn.access", "httpx", "httpcore", "alembic")
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_is_one_object_a_line_with_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger().info("serving", url="http://x")
    (line,) = _lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "serving", "level": "info", "url": "http://x"}


def test_the_libraries_records_look_the_same_and_name_their_logger(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    logging.getLogger("aiokafka.client").warning("no %s", "leader")
    (line,) = _lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("no leader", "warning", "aiokafka.client")


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_token_that_somebody_sent_in_a_wrong_place_is_left_out(
    capsys: pytest.CaptureFixture[str], style: Literal["json", "console"]
) -> None:
    configure_logging("info", style)
    token = new_token(bytes(SECRET_BYTES))
    structlog.get_logger().info("api_request", path=f"/api/v1/tokens/{token}", status=422)
    logging.getLogger("uvicorn.error").warning("bad %s!", token)
    said = capsys.readouterr().err
    assert token not in said
    assert "/api/v1/tokens/mkf_(removed)" in said
    assert "bad mkf_(removed)!" in said
    structlog.get_logger().info("mkf_mapping_state")
    assert "mkf_mapping_state" in capsys.readouterr().err


def test_a_traceback_is_text_inside_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        structlog.get_logger().exception("crashed")
        logging.getLogger("library").exception("crashed too")
    ours, theirs = _lines(capsys)
    for line in (ours, theirs):
        assert "ZeroDivisionError: division by zero" in line["exception"]
        assert "test_logs.py" in line["exception"]


def test_an_exception_that_was_caught_elsewhere_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    structlog.get_logger().error("crashed", exc_info=ZeroDivisionError("a bug"))
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["console", "json"])
def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str], style: Any) -> None:
    configure_logging("warning", style)
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("library").error("louder")
    written = capsys.readouterr().err
    assert "quiet" not in written
    assert "loud" in written
    assert "louder" in written


def test_the_console_shows_event_and_details_without_colours_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("debug", "console")
    structlog.get_logger("server.runtime").debug("mapping_running", mapping="a")
    written = capsys.readouterr().err
    assert "mapping_running" in written
    assert "mapping=a" in written
    assert "\x1b[" not in written


def test_chatty_libraries_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "json")
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).info("chat")
        logging.getLogger(name).warning("serious")
    assert [line["event"] for line in _lines(capsys)] == ["serious"] * 3


@pytest.mark.parametrize(
    "library",
    [
        "aiokafka.conn",
        "asyncio",
        "httpcore.http11",
        "mqtt",  # aiomqtt's
        "paho.mqtt.client",
        v311._QUIET.name,  # what paho and aiomqtt are given
        "sqlalchemy.engine.Engine",
        "any other",
    ],
)
def test_no_library_is_ever_heard_below_info(capsys: pytest.CaptureFixture[str], library: str) -> None:
    configure_logging("debug", "json")
    assert not logging.getLogger(library).isEnabledFor(logging.DEBUG)
    logging.getLogger(library).debug("CANARY")
    assert _lines(capsys) == []


class _SaslBroker:
    """As much of a Kafka broker as it takes to be told a password."""

    def __init__(self) -> None:
        self.told = b""

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        while size := await reader.read(4):
            request = await reader.readexactly(int.from_bytes(size, "big"))
            key, _, correlation = struct.unpack(">hhi", request[:8])
            self.told += request
            answer = (
                correlation.to_bytes(4, "big")
                + {
                    18: struct.pack(">hi9h", 0, 3, 18, 0, 0, 17, 0, 1, 36, 0, 0),  # ApiVersions
                    17: struct.pack(">hih5s", 0, 1, 5, b"PLAIN"),  # SaslHandshake
                    36: struct.pack(">hhi", 0, -1, 0),  # SaslAuthenticate
                }[key]
            )
            writer.write(len(answer).to_bytes(4, "big") + answer)
        writer.close()


async def test_at_debug_a_kafka_password_goes_to_kafka_and_not_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")
    broker = _SaslBroker()
    async with await asyncio.start_server(broker.serve, "127.0.0.1", 0) as server:
        connection = await create_conn(
            *server.sockets[0].getsockname(),
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_plain_username="u",
            sasl_plain_password="CANARY",
        )
        await connection.close()
    assert b"CANARY" in broker.told
    written = capsys.readouterr().err
    assert "Authenticated as u via PLAIN" in written
    assert "CANARY" not in written
