"""Configuration files as people write them, and what typing errors, editors and generators make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

# Each stands in a place of its own, so that it is known where it may show.
PASSWORD = "canary-from-environment-31a7"
FROM_FILE = "canary-from-file-52c9"
WRITTEN = "canary-written-77e1"
ANYWHERE = "canary-anywhere-90b4"

_FILES = (
    f"""\
mqtt:
  host: broker.example
  port: 1883
  client_id: service
  protocol: auto
  session_expiry: 24h
  keep_alive: 15s
  credentials:
    username: forwarder
    password: ${{MQTT_PASSWORD}}
kafka:
  bootstrap_server: kafka.example
  port: 9092
  config:
    security.protocol: sasl_plaintext
    sasl.mechanism: PLAIN
    sasl.username: forwarder
    sasl.password: {WRITTEN}
    linger.ms: 5
    compression.type: lz4
forwarding:
  - name: telemetry
    mqtt:
      topic: ["plant/+/telemetry", "plant/+/state"]
      qos: 1
    kafka:
      topic: telemetry
      key: "{{topic[1]}}"
      headers: {{source: "{{topic}}", fixed: "a: b"}}
    on_poison: dead_letter
    dead_letter_topic: telemetry.dead
    buffer_bytes: 33554432
  - name: "größe ${{NAME:-☃}}"
    paused: true
    mqtt: {{topic: "a/#", client_id: ${{CLIENT:-own}}, receive_maximum: 100}}
    kafka: {{topic: k, key: null}}
    wrap_as_json: true
""",
    f"""\
# the password from a file
mqtt: {{host: localhost, client_id: "c", credentials: {{username: u, password: {WRITTEN}}}}}
kafka:
  config: {{bootstrap.servers: "a:9092,b:9092", sasl.username: u, sasl.password: "${{file:SECRET}}",
           security.protocol: SASL_PLAINTEXT, sasl.mechanisms: SCRAM-SHA-256}}
forwarding:
- {{name: demo, mqtt: {{topic: "demo/#"}}, kafka: {{topic: demo_data}}, wrap_as_json: false}}
- name: other
  mqtt:
    topic: |
      not/a/line
    qos: "${{QOS:-2}}"
  kafka:
    topic: >-
      other
""",
)

_VALUES = (
    *("", "~", "null", "true", "no", "0o17", "0x1F", "1e3", "1e999", "-1", ".inf", ".nan", "12:30", "2001-01-01"),
    *("9" * 20, "9" * 40, "-" + "9" * 5_000, "1" + "0" * 400 + ".5", "[]", "{}", "[1, {a: b}]", "{a: [b]}", "- a"),
    *("'", '"', "'a", '"a', "&a b", "*a", "!!python/object:os.system x", "!a b", "!!str 5", "!!binary aGk=", "<<"),
    *("|", ">-", "|9", "@a", "`a", "%a", "a: b", "a #b", "? a", "? [a]", "\ttab", "a\tb", "\u2028", "\x85", "\ufeff"),
    *("\\ud800", '"\\ud800"', '"\\0"', '"\\x00"', '"a\\nb"', '"\\u2028"', "\U0001f40d", "e\u0301", "\u202e", "\x7f"),
    *("${ANYWHERE}", "x${ANYWHERE}y", "${ANYWHERE:-d}", "${MISSING}", "${MISSING:-d}", "${MISSING:-${ANYWHERE}}"),
    *("${", "$${", "$${ANYWHERE}", "${}", "${1}", "${A B}", "${:-}", "${MQTT_PASSWORD", "${EMPTY}", "${EMPTY:-d}"),
    *("${file:SECRET}", "${file:}", "${file:/nowhere}", "${file:/}", "${file:/dev/null}", "${file:${ANYWHERE}}"),
    *("${file:LARGE}", "${file:BINARY}", '"${file:a\\0b}"', "${LINES}", "${SURROGATE}", "${BRACES}"),
)
_KEYS = (
    *("mqtt", "kafka", "forwarding", "name", "topic", "qos", "client_id", "tls", "transport", "config", "headers"),
    *("hots", "'a: b'", '"a\\nb"', '"\\u2028"', "? x", "[a]", "{a: b}", "~", "5", "true", "<<", "&a k", "!t k", "*a"),
    *("${ANYWHERE}", "sasl.passwort", "ssl.key.password", "acks", "\U0001f40d", "__class__", "model_config", "a.b"),
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a mutation happens, as a share of what there is, and what it takes."""

    at: float
    value: str
    key: str
    count: int


_PLACES = st.builds(
    _Place,
    at=st.floats(0, 1, exclude_max=True),
    value=st.sampled_from(_VALUES) | st.text(max_size=20),
    key=st.sampled_from(_KEYS) | st.text(max_size=10),
    count=st.integers(1, 6),
)


def _on_line(change: Callable[[str, _Place], str]) -> Callable[[str, _Place], str]:
    def mutate(text: str, place: _Place) -> str:
        lines = text.split("\n")
        index = int(place.at * len(lines))
        lines[index] = change(lines[index], place)
        return "\n".join(lines)

    return mutate


def _on_character(change: Callable[[str, _Place], str]) -> Callable[[str, _Place], str]:
    def mutate(text: str, place: _Place) -> str:
        index = int(place.at * len(text))
        return text[:index] + change(text[index:], place)

    return mutate


def _is_secret(line: str) -> bool:
    """Whether a literal secret is on this line, which must stay the value it is: keys are shown."""
    return WRITTEN in line


def _other_value(line: str, place: _Place) -> str:
    key, colon, _ = line.partition(": ")
    return f"{key}{colon}{place.value}" if colon else line + place.value


def _other_key(line: str, place: _Place) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    _, colon, value = line.partition(": ")
    return line if _is_secret(line) else f"{indent}{place.key}{colon or ': '}{value}"


def _decorated(line: str, place: _Place) -> str:
    key, colon, value = line.partition(": ")
    return f"{key}{colon}{('&a ', '!t ', '!!int ', '*a ', '| ', '[', '{')[place.count]}{value}"


def _indented(line: str, place: _Place) -> str:
    return line[1:] if place.count == 1 and line[:1] == " " else " " * (place.count - 1) + line


def _nested(line: str, place: _Place) -> str:
    key, colon, _ = line.partition(": ")
    depth = (10, 31, 33, 100, 1_000, 20_000)[place.count - 1]
    return key + (colon or ": ") + ("[" if place.at * 100 % 1 < 0.5 else "{a: ") * depth


_MUTATIONS: tuple[Callable[[str, _Place], str], ...] = (
    _on_line(_other_value),
    _on_line(_other_value),
    _on_line(_other_value),
    _on_line(_other_key),
    _on_line(_decorated),
    _on_line(_indented),
    _on_line(_nested),
    _on_line(lambda line, place: "\n".join([line] * place.count)),
    _on_line(lambda line, _: "" if not _is_secret(line) else line),
    _on_line(lambda line, place: f"{line}\n{place.key}: {place.value}"),
    _on_line(lambda line, _: f"{line}\n---"),
    _on_line(lambda line, _: line.replace("password: ", "password:")),
    _on_line(lambda line, _: line if _is_secret(line) else line.replace(": ", ":")),
    _on_character(lambda rest, place: place.value + rest),
    _on_character(lambda rest, place: rest[place.count :]),
    _on_character(lambda rest, place: place.value[:1] + rest[1:]),
    _on_character(lambda _, __: ""),
)


@st.composite
def mutated_files(draw: st.DrawFn) -> str:
    """A valid file with a few changes, or without."""
    text = draw(st.sampled_from(_FILES))
    for mutate, place in draw(st.lists(st.tuples(st.sampled_from(_MUTATIONS), _PLACES), max_size=4)):
        text = mutate(text, place)
    return text
