"""What the load tool publishes, and how it recognizes it again."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mqtt5
import pytest

from loadtest.endpoints import KafkaEndpoint, MqttEndpoint, Tls
from loadtest.payload import HEADER, headers, probe
from loadtest.publisher import Assignment, Packets
from loadtest.sizes import LARGEST, Sizes
from loadtest.workload import Workload, topic_name


def test_a_fixed_size_is_always_the_same() -> None:
    assert set(Sizes("200").sample(100)) == {200}


def test_a_range_is_uniform() -> None:
    drawn = Sizes("100-1000").sample(5_000)
    assert min(drawn) >= 100
    assert max(drawn) <= 1_000
    assert sum(drawn) / len(drawn) == pytest.approx(550, rel=0.05)


def test_a_log_normal_distribution_has_the_median_given() -> None:
    drawn = sorted(Sizes("lognormal:200,1.0").sample(5_000))
    assert drawn[2_500] == pytest.approx(200, rel=0.1)
    assert drawn[0] >= HEADER.size
    assert drawn[-1] > 1_000


def test_weights_say_how_often_a_size_comes() -> None:
    drawn = Sizes("50:0.9,10000:0.1").sample(5_000)
    assert drawn.count(50) / 5_000 == pytest.approx(0.9, abs=0.02)
    assert set(drawn) == {50, 10_000}


def test_sizes_are_the_same_in_each_run() -> None:
    assert Sizes("16-999").sample(50) == Sizes("16-999").sample(50)


@pytest.mark.parametrize(
    "text", ["", "x", "15", "-5", "200-100", "10-20", "lognormal:200", "lognormal:5,1", "50:0,60:0", f"{LARGEST + 1}"]
)
def test_what_is_no_distribution_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range is empty|weights|payload has|is not like"):
        Sizes(text)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"messages": 0}, {"topics": 0}, {"publishers": 0}, {"rate": 0.0}, {"qos": 3}, {"size": "x"}),
        {"publishers": 3, "topics": 100},
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|no QoS|is not like|shared out"):
        Workload(**{"messages": 10, **wrong})  # type: ignore[arg-type]


def test_publishers_share_the_messages() -> None:
    workload = Workload(11, publishers=2)
    assert [workload.of_publisher(number) for number in range(2)] == [6, 5]


def sent(assignment: Assignment, count: int) -> list[mqtt5.PublishPacket]:
    data = Packets(assignment).joined(0, count, (assignment.publisher, assignment.workload.publishers), 77)
    packets, view = [], memoryview(data)
    while view:
        packet, used = mqtt5.read(view)
        assert isinstance(packet, mqtt5.PublishPacket)
        packets.append(packet)
        view = view[used:]
    return packets


@pytest.mark.parametrize("size", ["16", "200", "16-3000"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_packets_carry_number_time_topic_and_packet_id(size: str, qos: int) -> None:
    workload = Workload(1_000, size, topics=6, qos=qos, publishers=2)
    packets = sent(Assignment(MqttEndpoint("h", 1), "run", workload, 1), 500)
    numbers, times = headers([packet.payload or b"" for packet in packets])
    assert numbers.tolist() == [2 * index + 1 for index in range(500)]
    assert set(times.tolist()) == {77}
    assert [packet.topic for packet in packets] == [topic_name("run", number % 6) for number in numbers]
    assert {int(packet.qos) for packet in packets} == {qos}
    assert [packet.packet_id for packet in packets] == [index + 1 if qos else None for index in range(500)]


def test_wrapped_payloads_are_read_like_bare_ones() -> None:
    bare = HEADER.pack(5, 9) + b"." * 50
    wrapped = json.dumps({"topic": "a/b", "payload": base64.b64encode(bare).decode()}).encode()
    numbers, times = headers([bare, wrapped])
    assert (numbers.tolist(), times.tolist()) == ([5, 5], [9, 9])


def test_probes_have_no_number() -> None:
    numbers, _ = headers([probe()])
    assert numbers.tolist() == [-1]


def test_a_value_of_somebody_else_is_no_message() -> None:
    with pytest.raises(ValueError, match="too short"):
        headers([b"hello"])


def test_librdkafka_is_told_about_tls() -> None:
    plain = KafkaEndpoint("k", 9092).client
    assert plain["bootstrap.servers"] == "k:9092"
    assert "security.protocol" not in plain
    client = KafkaEndpoint("k", 9092, Tls(Path("ca"), Path("cert"), Path("key"))).client
    assert client["security.protocol"] == "SSL"
    assert client["ssl.ca.location"] == "ca"
    assert client["ssl.certificate.location"] == "cert"
    assert client["ssl.key.location"] == "key"
