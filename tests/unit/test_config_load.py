"""The configuration file: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from server.config.errors import ConfigError
from server.config.load import Config, load_config, parse_config
from server.core.connections import MqttTls

_DATA = Path(__file__).parent / "data"
_SECTIONS = "mqtt: {host: h, client_id: c}\nkafka: {}\n"


def _config(text: str, **environ: str) -> Config:
    return parse_config(dedent(text), environ, "config.yaml")


def _lines(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        _config(text, **environ)
    assert len(str(refused.value).splitlines()) == len(refused.value.problems)
    return str(refused.value).splitlines()


def test_the_seeds_configuration_loads_unchanged() -> None:
    config = load_config(_DATA / "seed-config.yaml", {})

    [entry] = config.forwarding
    assert config.mqtt.client_id == "forwarding-service-1"
    assert (config.mqtt.tls, config.mqtt.credentials) == (None, None)
    assert (entry.mapping.name, entry.mapping.mqtt.topic, entry.mapping.kafka.topic) == ("demo", "demo/#", "demo_data")
    assert entry.line == 17
    assert [warning.split()[0] for warning in config.warnings] == ["mqtt.tls"]  # its keys have no values


def test_the_demos_configuration_loads() -> None:
    config = load_config(Path("config.yaml"), {"MKF_DEMO_KAFKA_PORT": "19092"})

    assert [entry.mapping.name for entry in config.forwarding] == ["demo", "temperatures"]
    assert (config.mqtt.address, config.kafka.address) == ("localhost:1883", "localhost:19092")


def test_all_problems_come_at_once_with_their_lines() -> None:
    assert _lines("""\
        mqtt:
          host: h
          prot: 1
          port: ${PORT}
        kafka:
          port: many
          config:
            acks: 0
            lingerms: 5
        forwardings: []
        forwarding:
          - name: a
            mqtt: {topic: [a, [b]]}
            kafka: {topik: b}
          - 5
        """) == [
        "config.yaml:3: mqtt.prot: unknown key; did you mean 'port'?",
        "config.yaml:4: mqtt.port: the environment variable PORT is not set",
        "config.yaml:6: kafka.port: should be a valid integer, unable to parse string as an integer",
        (
            "config.yaml:8: kafka.config.acks: 0 is refused: without Kafka's confirmation the forwarder could never "
            "acknowledge a message; use all"
        ),
        "config.yaml:9: kafka.config.lingerms: unknown option; did you mean 'linger.ms'?",
        "config.yaml:10: forwardings: unknown key; did you mean 'forwarding'?",
        "config.yaml:13: forwarding[0].mqtt.topic[1]: should be a valid string",
        "config.yaml:14: forwarding[0].kafka.topic: is required",
        "config.yaml:14: forwarding[0].kafka.topik: unknown key; did you mean 'topic'?",
        "config.yaml:15: forwarding[1]: expected a mapping with name, mqtt and kafka",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "config.yaml: is empty; the sections mqtt and kafka are required"),
        ("# only a comment\n", "config.yaml: is empty; the sections mqtt and kafka are required"),
        ("- a\n", "config.yaml:1: expected the sections mqtt, kafka and forwarding"),
        ("mqtt: {host: h}\n", "config.yaml: kafka: is required"),
        ("mqtt:\nkafka: {}\n", "config.yaml:1: mqtt: is required"),
        ("mqtt: 5\nkafka: {}\n", "config.yaml:1: mqtt: expected a section of keys"),
        ("mqtt: {}\nkafka: {}\n", "config.yaml:1: mqtt.host: is required"),
        ("mqtt: {host: }\nkafka: {}\n", "config.yaml:1: mqtt.host: is required"),
        (_SECTIONS + "forwarding: 5\n", "config.yaml:3: forwarding: expected a list of mappings"),
        ("mqtt: {host: h}\nkafka: {config: 5}\n", "config.yaml:2: kafka.config: expected a section of keys"),
        ("mqtt: {host: h, credentials: 5}\nkafka: {}\n", "config.yaml:1: mqtt.credentials: expected a section of keys"),
    ],
)
def test_a_wrong_shape_is_refused(text: str, expected: str) -> None:
    assert _lines(text) == [expected]


@pytest.mark.parametrize("written", ["true", "{}", '"true"', "${TLS}"])
def test_tls_may_be_wanted_without_saying_more(written: str) -> None:
    config = _config(f"mqtt:\n  host: h\n  client_id: c\n  tls: {written}\nkafka: {{}}\n", TLS="true")
    assert config.mqtt.tls == MqttTls()
    assert not config.mqtt.is_plain_tcp


@pytest.mark.parametrize("written", ["false", "", "null", "${TLS}"])
def test_tls_may_be_unwanted(written: str) -> None:
    config = _config(f"mqtt:\n  host: h\n  client_id: c\n  tls: {written}\nkafka: {{}}\n", TLS="false")
    assert config.mqtt.tls is None
    assert config.mqtt.is_plain_tcp


def test_the_seeds_keys_of_tls_are_taken() -> None:
    config = _config("""\
        mqtt:
          host: h
          client_id: c
          tls: {ca_cert: ca.pem, client_key: key.pem, client_cert: cert.pem}
        kafka: {}
        """)
    assert config.mqtt.tls == MqttTls(ca_cert="ca.pem", client_cert="cert.pem", client_key="key.pem")


def test_every_key_of_tls_and_websocket_is_taken() -> None:
    config = _config(
        """\
        mqtt:
          host: h
          client_id: c
          transport: websocket
          path: /mqtt?x=y
          tls:
            ca_cert: ca.pem
            client_cert: cert.pem
            client_key: key.pem
            client_key_password: ${PASSWORD}
            server_name: n
            alpn: x-amzn-mqtt-ca
            insecure_skip_verify: true
        kafka: {}
        """,
        PASSWORD="0123",
    )
    tls = config.mqtt.tls
    assert tls is not None
    assert tls.client_key_password is not None
    assert tls.client_key_password.get_secret_value() == "0123"
    assert (tls.alpn, config.mqtt.server_name, config.mqtt.path) == (("x-amzn-mqtt-ca",), "n", "/mqtt?x=y")
    [warning] = config.warnings
    assert warning.startswith("mqtt.tls.insecure_skip_verify is set: the broker's certificate is not checked")


def test_a_template_of_tls_that_nobody_filled_in_counts_as_absent_and_is_warned_of() -> None:
    config = _config("mqtt: {host: h, client_id: c, tls: {ca_cert: , client_cert: }}\nkafka: {}\n")
    assert config.mqtt.tls is None
    [warning] = config.warnings
    assert warning.startswith("mqtt.tls has keys without values and counts as absent, so nothing is encrypted")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("tls: 5", "mqtt.tls: expected a section of keys"),
        ("tls: maybe", "mqtt.tls: expected a section of keys"),
        ('tls: {ca_cert: ""}', "mqtt.tls.ca_cert: String should have at least 1 character"),
        ("tls: {client_cert: c}", "mqtt.tls: client_cert and client_key must be set together"),
        ("tls: {client_key_password: p}", "mqtt.tls: client_key_password is set, but no client_key"),
        (
            'tls: {alpn: [""]}',
            "mqtt.tls.alpn[0]: expected a protocol name of 1 to 255 ASCII characters, such as x-amzn-mqtt-ca",
        ),
        ("tls: {verify: false}", "mqtt.tls.verify: unknown key"),
        ("transport: wss", "mqtt.transport: should be 'tcp' or 'websocket'"),
        (
            "path: mqtt",
            "mqtt.path: expected a path such as /mqtt: it begins with / and has no spaces, no # and only ASCII",
        ),
    ],
)
def test_what_is_wrong_with_tls_and_websocket_is_said_at_its_key(written: str, expected: str) -> None:
    assert _lines(f"mqtt:\n  host: h\n  {written}\nkafka: {{}}\n") == [f"config.yaml:3: {expected}"]


def test_kerberos_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "mqtt: {host: h, client_id: c}\nkafka:\n  config:\n    security.protocol: sasl_plaintext\n"
    monkeypatch.setitem(sys.modules, "gssapi", None)
    [line] = _lines(text)
    assert line.startswith("config.yaml:4: kafka.config.security.protocol: SASL without sasl.mechanism means GSSAPI")


def test_values_come_from_the_environment_as_the_type_the_key_has() -> None:
    config = _config(
        """\
        mqtt: {host: h, port: "${PORT}", client_id: "${ID:-none}", protocol: "${FIVE}"}
        kafka: {port: "${UNSET:-9093}"}
        forwarding:
          - name: ${ID:-x}-${PORT}
            paused: ${YES}
            mqtt: {topic: a, qos: "${QOS}"}
            kafka: {topic: k}
        """,
        PORT="1884",
        FIVE="5",
        ID="",
        YES="true",
        QOS="2",
    )

    [entry] = config.forwarding
    assert (config.mqtt.port, config.mqtt.client_id, config.mqtt.protocol) == (1884, "none", "5")
    assert config.kafka.port == 9093
    assert (entry.mapping.name, entry.mapping.paused, entry.mapping.mqtt.qos) == ("x-1884", True, 2)


def test_a_literal_placeholder_is_written_with_two_dollars() -> None:
    config = _config("mqtt: {host: 'a$${B} $5 $$ $${'}\nkafka: {}\n")

    assert config.mqtt.host == "a${B} $5 $$ ${"


def test_a_value_cannot_change_the_structure() -> None:
    config = _config("mqtt: {host: h, client_id: '${ID}'}\nkafka: {}\n", ID='x"\nkafka: {port: 1}\n# ${HOME} *a &b')

    assert config.mqtt.client_id == 'x"\nkafka: {port: 1}\n# ${HOME} *a &b'
    assert config.kafka.port == 9092


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_gives_its_content_without_the_end_of_its_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "secret").write_bytes(b" two\nlines: ${HOME} " + end.encode())
    config = _config(f"mqtt: {{host: h, client_id: 'x-${{file:{tmp_path}/secret}}'}}\nkafka: {{}}\n")
    assert config.mqtt.client_id == "x- two\nlines: ${HOME} "


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file or directory"),
        (b"hunter2\xff", "is not UTF-8"),
        (b"a" * 65_537, "is larger"),
    ],
)
def test_a_file_that_can_not_be_read_is_named_with_its_key(tmp_path: Path, content: bytes | None, said: str) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    (line,) = _lines(f"mqtt: {{host: h, client_id: '${{file:{secret}}}'}}\nkafka: {{}}\n")
    assert line.startswith(f"config.yaml:1: mqtt.client_id: the file {secret} {said}")
    assert "hunter2" not in line


def test_keys_are_not_interpolated() -> None:
    assert _lines("mqtt: {host: h, '${KEY}': 1}\nkafka: {}\n", KEY="port") == [
        "config.yaml:1: mqtt.${KEY}: unknown key"
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${", "expected ${NAME}, ${NAME:-default} or ${file:PATH}; a literal ${ is $${"),
        ("${}", "expected ${NAME}, ${NAME:-default} or ${file:PATH}; a literal ${ is $${"),
        ("${A-b}", "expected ${NAME}, ${NAME:-default} or ${file:PATH}; a literal ${ is $${"),
        ("${NOT_THERE}", "the environment variable NOT_THERE is not set"),
        ("${BAD}", "the environment variable BAD is not valid UTF-8"),
    ],
)
def test_what_cannot_be_replaced_is_refused_once(value: str, expected: str) -> None:
    lines = _lines(f"mqtt:\n  host: '{value}'\nkafka: {{}}\n", BAD="hunter2\udcff")

    assert lines == [f"config.yaml:2: mqtt.host: {expected}"]


def test_no_message_shows_a_secret() -> None:
    text = """\
        mqtt:
          host: h
          session_expiry: ${SECRET}
          credentials: {username: [hunter2], password: {hunter2: 1}}
        kafka:
          config: {acks: hunter2, sasl.mechanism: "${SECRET}", ssl.key.pem: [hunter2], linger.ms: hunter2}
        forwarding:
          - name: ${SECRET}
            mqtt: {topic: "${SECRET}#"}
            kafka: {topic: "${SECRET} ", headers: {a: "{${SECRET}"}}
          - name: ${SECRET}
            mqtt: {topic: a}
            kafka: {topic: k}
            dead_letter_topic: "k"
            on_poison: ${SECRET}
        """
    lines = _lines(text, SECRET="hunter2")

    assert "hunter2" not in "\n".join(lines)
    assert (
        "config.yaml:9: forwarding[0].mqtt.topic: not valid; the reason is not shown, because it may repeat the value "
        "of SECRET" in lines
    )


def test_a_secret_written_into_the_file_is_not_repeated_either() -> None:
    assert _lines('mqtt: {host: h, credentials: {username: "hunter2\\0"}}\nkafka: {}\n') == [
        "config.yaml:1: mqtt.credentials.username: not valid"
    ]


def test_numbers_are_taken_as_they_are_written_where_text_is_wanted() -> None:
    config = _config("""\
        mqtt: {host: h, client_id: 007, credentials: {username: true, password: 0123}}
        kafka: {config: {security.protocol: sasl_ssl, sasl.mechanism: PLAIN, sasl.username: u, sasl.password: 0x10}}
        forwarding: [{name: 1, mqtt: {topic: [1, a]}, kafka: {topic: 1.50, key: 1}}]
        """)

    assert config.mqtt.client_id == "007"
    assert config.mqtt.credentials is not None
    assert config.mqtt.credentials.username == "true"
    assert config.mqtt.credentials.password is not None
    assert config.mqtt.credentials.password.get_secret_value() == "0123"
    assert config.kafka.config["sasl.password"] == "0x10"
    [entry] = config.forwarding
    assert (entry.mapping.name, entry.mapping.mqtt.topic) == ("1", ["1", "a"])
    assert (entry.mapping.kafka.topic, entry.mapping.kafka.key) == ("1.50", "1")


def test_null_counts_as_absent_except_for_the_key() -> None:
    config = _config("""\
        mqtt: {host: h, port: , client_id: c, tls: , credentials: {username: }}
        kafka: {config: {acks: , retries: }}
        forwarding: [{name: n, paused: , mqtt: {topic: a, qos: }, kafka: {topic: k, key: , headers: }}]
        """)

    [entry] = config.forwarding
    assert entry.mapping.kafka.key is None
    assert entry.mapping.mqtt.qos == 1
    assert config.mqtt.port == 1883
    assert config.warnings == ()


def test_unknown_keys_with_null_are_still_unknown() -> None:
    assert _lines("mqtt: {host: h, client_id: c, tls: {ca_crt: }}\nkafka: {}\n") == [
        "config.yaml:1: mqtt.tls.ca_crt: unknown key; did you mean 'ca_cert'?"
    ]


def test_a_rule_that_is_broken_is_named() -> None:
    entry = "forwarding:\n  - name: n\n    on_poison: dead_letter\n    mqtt: {topic: a#}\n    kafka: {topic: k}\n"

    assert _lines(_SECTIONS + entry) == [
        "config.yaml:4: forwarding[0].dead_letter_topic: on_poison: dead_letter needs a dead_letter_topic",
        "config.yaml:6: forwarding[0].mqtt.topic: 'a#': '#' must stand alone in the last level, but level 1 is 'a#'",
    ]
    assert _lines(_SECTIONS + entry.replace("a#", "a")) == [
        "config.yaml:4: forwarding[0].dead_letter_topic: on_poison: dead_letter needs a dead_letter_topic"
    ]


def test_what_is_wrong_with_a_field_hides_no_broken_rule_and_no_clash() -> None:
    assert _lines("""        mqtt: {client_id: c, port: many, transport: websocket, tls: {ca_cert: ca.pem}}
        kafka: {}
        forwarding:
          - name: a
            on_poison: dead_letter
            mqtt: {topic: a, qos: 5}
            kafka: {topic: k}
          - name: b
            dead_letter_topic: k
            mqtt: {topic: "#/b", client_id: c-a}
            kafka: {topic: k}
          - {name: c, mqtt: {client_id: c-b}, kafka: {topic: k}}
          - {name: d, mqtt: {topic: d, client_id: [c-b]}, kafka: {topic: k}}
          - {name: e, mqtt: 5, kafka: {topic: k}}
        """) == [
        "config.yaml:1: mqtt.host: is required",
        "config.yaml:1: mqtt.port: should be a valid integer, unable to parse string as an integer",
        "config.yaml:4: forwarding[0].dead_letter_topic: on_poison: dead_letter needs a dead_letter_topic",
        "config.yaml:6: forwarding[0].mqtt.qos: should be 0, 1 or 2",
        "config.yaml:9: forwarding[1].dead_letter_topic: must differ from kafka.topic, both are 'k'",
        (
            "config.yaml:10: forwarding[1].mqtt.client_id: the entry in line 4 has the same MQTT client id, and "
            "would take over its session"
        ),
        "config.yaml:10: forwarding[1].mqtt.topic: '#/b': '#' must stand alone in the last level, but level 1 is '#'",
        "config.yaml:12: forwarding[2].mqtt.topic: is required",
        "config.yaml:13: forwarding[3].mqtt.client_id: should be a valid string",
        "config.yaml:14: forwarding[4].mqtt: expected a section of keys",
    ]


def test_client_ids_that_are_not_known_do_not_clash() -> None:
    assert _lines("""        mqtt: {host: h, client_id: "${BASE}"}
        kafka: {}
        forwarding:
          - {name: a, mqtt: {topic: a}, kafka: {topic: k}}
          - {name: "${ONE}", mqtt: {topic: a, client_id: "${TWO}"}, kafka: {topic: k}}
          - {name: b, mqtt: {topic: a, client_id: "-a"}, kafka: {topic: k}}
          - {mqtt: {topic: a}, kafka: {topic: k}}
        """) == [
        "config.yaml:1: mqtt.client_id: the environment variable BASE is not set",
        "config.yaml:5: forwarding[1].mqtt.client_id: the environment variable TWO is not set",
        "config.yaml:5: forwarding[1].name: the environment variable ONE is not set",
        "config.yaml:7: forwarding[3].name: is required",
    ]


def test_names_and_client_ids_are_unique() -> None:
    assert _lines(
        _SECTIONS
        + dedent("""\
        forwarding:
          - {name: a, mqtt: {topic: a}, kafka: {topic: k}}
          - {name: a, mqtt: {topic: a}, kafka: {topic: k}}
          - {name: b, mqtt: {topic: a, client_id: c-a}, kafka: {topic: k}}
          - {name: d, mqtt: {topic: a, client_id: ""}, kafka: {topic: k}}
          - {name: e, mqtt: {topic: a, client_id: ""}, kafka: {topic: k}}
          - {mqtt: {topic: a}, kafka: {topic: k}}
        """)
    ) == [
        "config.yaml:5: forwarding[1].name: the entry in line 4 has the same name",
        (
            "config.yaml:6: forwarding[2].mqtt.client_id: the entry in line 4 has the same MQTT client id, and "
            "would take over its session"
        ),
        "config.yaml:9: forwarding[5].name: is required",
    ]


@pytest.mark.parametrize("forwarding", ["", "forwarding:\n", "forwarding: []\n"])
def test_a_file_without_entries_is_valid(forwarding: str) -> None:
    config = _config(_SECTIONS + forwarding)

    assert (config.forwarding, config.warnings) == ((), ())  # what that means is said when the file is applied


@pytest.mark.parametrize("client_id", ["", ", client_id: ''", ", client_id: "])
def test_without_a_client_id_one_warning_says_that_sessions_are_not_durable(client_id: str) -> None:
    config = _config(
        f"mqtt: {{host: h{client_id}}}\nkafka: {{}}\nforwarding: [{{name: n, mqtt: {{topic: a}}, "
        "kafka: {topic: k}}]\n"
    )

    [warning] = config.warnings
    assert "not durable" in warning


def test_the_options_own_warnings_are_passed_on() -> None:
    config = _config(
        "mqtt: {host: h, client_id: c}\nkafka:\n  port: 1\n  config: {retries: 3, bootstrap.servers: b}\n"
        "forwarding: [{name: n, mqtt: {topic: a}, kafka: {topic: k}}]\n"
    )

    assert config.kafka.address == "b"
    assert [warning.rsplit(": ", 1)[-1] for warning in config.warnings] == [
        "retries",
        "bootstrap.servers wins over kafka.bootstrap_server and kafka.port",
    ]


def test_the_digest_is_of_what_is_written_not_of_the_environment() -> None:
    entry = "forwarding: [{name: '${N}', mqtt: {topic: a}, kafka: {topic: k}}]\n"
    same = "# moved\n" + _SECTIONS + "forwarding:\n - kafka: {topic: k}\n   name: ${N}\n   mqtt:\n     topic: 'a'\n"

    [one], [other], [moved] = (
        _config(_SECTIONS + entry, N="one").forwarding,
        _config(_SECTIONS + entry, N="other").forwarding,
        _config(same, N="one").forwarding,
    )
    [changed] = _config(_SECTIONS + entry.replace("topic: a", "topic: b"), N="one").forwarding
    assert one.digest == other.digest == moved.digest
    assert len(one.digest) == 64
    assert changed.digest != one.digest


def _unreadable(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        load_config(path, {})
    return str(refused.value).removeprefix(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert _unreadable(tmp_path / "none.yaml") == ": can't be read: No such file or directory"
    assert _unreadable(tmp_path) == ": can't be read: Is a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.touch(mode=0)
    assert _unreadable(file) == ": can't be read: Permission denied"


def test_a_file_that_is_not_utf8_or_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"mqtt:\n  host: \xff\n")
    assert _unreadable(file) == ":2: is not UTF-8"
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    assert _unreadable(file) == ": is larger than 1048576 bytes"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(_SECTIONS, encoding="utf-8-sig")
    assert load_config(file, {}).mqtt.host == "h"


@pytest.mark.parametrize(
    "gone_wrong", ["password hunter2", "password hunter2: x", "password\thunter2: ", "password:hunter2: x"]
)
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("mqtt: {{host: h, credentials: {{username: u, {}}}}}", "mqtt.credentials.password…: unknown key"),
        ("{{{}}}", "password…: unknown key"),
        ("mqtt: {{host: h, {0}, {0}}}", "mqtt.password…: duplicate key, first used in line 1"),
        ("kafka: {{bootstrap_server: h, config: {{{}, x: 1}}}}", "kafka.config.x: unknown option"),
    ],
)
def test_what_follows_a_key_in_its_place_is_not_shown_for_it_may_be_a_secret(
    written: str, said: str, gone_wrong: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(written.format(gone_wrong), {}, "config.yaml")
    assert "hunter2" not in str(raised.value)
    assert f"config.yaml:1: {said}" in str(raised.value)


def test_a_secret_behind_a_colon_without_a_space_is_not_shown_as_a_key() -> None:
    credentials = "{username: u, password:hunter2, password:hunter2}"
    assert _lines(f"mqtt: {{host: h, credentials: {credentials}}}\nkafka: {{}}\n") == [
        "config.yaml:1: mqtt.credentials.password: a space is missing behind the ':'",
        "config.yaml:1: mqtt.credentials.password: a space is missing behind the ':'",
        "config.yaml:1: mqtt.credentials.password: duplicate key, first used in line 1",
    ]


@pytest.mark.parametrize(
    ("key", "shown"), [("a\\nconfig.yaml:9: b", "a\\nconfig.yaml…"), ("\\u2028", "\\u2028"), ("\\e[2J", "\\x1b[2J")]
)
def test_a_key_can_not_write_a_line_or_a_terminal_code_of_its_own(key: str, shown: str) -> None:
    assert _lines(f'{_SECTIONS}"{key}": 5\n') == [f"config.yaml:3: {shown}: unknown key"]
