"""Network addresses as text."""

from __future__ import annotations

import pytest
from aiokafka.conn import collect_hosts

from server.core.address import address, is_loopback, server_list


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", "localhost:80"), ("127.0.0.1", "127.0.0.1:80")),
        *(("::1", "[::1]:80"), ("fe80::1%eth0", "[fe80::1%eth0]:80")),
        ("a:1,b", "a:1,b:80"),  # as the seed writes several Kafka servers
    ],
)
def test_an_ipv6_address_is_written_in_brackets(host: str, expected: str) -> None:
    assert address(host, 80) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("LocalHost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False)),
    ],
)
def test_loopback_is_told_by_its_name_and_its_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", [("localhost", 9092)]),
        (" a:1 , b.c-d_e:65535,", [("a", 1), ("b.c-d_e", 65_535)]),
        ("[::1]:9093,[::1]", [("::1", 9093), ("::1", 9092)]),
        ("[fe80::1%eth0]:1,10.0.0.1:2", [("fe80::1%eth0", 1), ("10.0.0.1", 2)]),
        ("bücher.example:9092", [("bücher.example", 9092)]),
    ],
)
def test_a_list_of_servers_is_what_aiokafka_reads(text: str, expected: list[tuple[str, int]]) -> None:
    assert [(host, port) for host, port, _ in collect_hosts(server_list(text), randomize=False)] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("localhost:9092x", "localhost:", ":9092", "a:0", "a:65536", "a:1:2", "a b", "a;b", "a/b", "a,b:x"),
        *("::1", "[::1", "[::1]x", "[::1]:", "[localhost]:1", "[]:1", "::1:9092"),
    ],
)
def test_what_is_no_list_of_servers_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port") as refused:
        server_list(text)
    assert text not in str(refused.value).removesuffix("[::1]:9092")


def test_a_protocol_before_a_server_is_not_supported() -> None:
    with pytest.raises(ValueError, match=r"use security\.protocol"):
        server_list("a:1,SASL_SSL://b:2")


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_of_servers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        server_list(text)
