"""The YAML configuration file: read, interpolated, validated; all problems at once, before anything connects."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from server.config.document import Node, Scalar, Sequence, Table, is_null, plain, read_document
from server.config.errors import ConfigError, Path, Problem, dotted
from server.config.interpolation import interpolate
from server.config.schema import Model, build, did_you_mean
from server.core.connections import KafkaConnection, MqttConnection
from server.core.kafka_options import KafkaOptionsError, translate
from server.core.mapping import Mapping

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping as Environ
    from pathlib import Path as FilePath

MAX_BYTES = 1024 * 1024

_SECTIONS = ("mqtt", "kafka", "forwarding")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of `forwarding`. `digest` is the SHA-256 of the entry as written, before interpolation, in hex."""

    mapping: Mapping
    digest: str
    line: int


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration; `warnings` are for the log and the status."""

    mqtt: MqttConnection
    kafka: KafkaConnection
    forwarding: tuple[FileEntry, ...]
    warnings: tuple[str, ...]


def load_config(path: FilePath, environ: Environ[str, str]) -> Config:
    """Read the configuration file.

    Raises:
        ConfigError: the file can't be read, is larger than 1 MiB, or is not a valid configuration.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(source, [Problem(None, "", f"can't be read: {error.strerror}")]) from None
    if len(content) > MAX_BYTES:
        raise ConfigError(source, [Problem(None, "", f"is larger than {MAX_BYTES} bytes")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(source, [Problem(line, "", "is not UTF-8")]) from None
    return parse_config(text, environ, source)


def parse_config(text: str, environ: Environ[str, str], source: str) -> Config:
    """Parse the text of a configuration file; `source` is its name in messages.

    Raises:
        ConfigError: not a valid configuration.
    """
    written = read_document(text, source)
    if written is None or is_null(written):
        raise ConfigError(source, [Problem(None, "", "is empty; the sections mqtt and kafka are required")])
    if not isinstance(written, Table):
        raise ConfigError(source, [Problem(written.line, "", "expected the sections mqtt, kafka and forwarding")])
    reading = _Reading(source, written, environ)
    return reading.config()


class _Reading:
    """One reading of a file: goes through its sections and collects what is wrong with each."""

    def __init__(self, source: str, written: Table, environ: Environ[str, str]) -> None:
        self._source = source
        self._problems = [
            Problem(written.key_lines[key], key, "unknown key" + did_you_mean(key, _SECTIONS))
            for key in written.entries
            if key not in _SECTIONS
        ]
        self._warnings: list[str] = []
        known = {key: node for key, node in written.entries.items() if key in _SECTIONS}
        self._written = Table(written.line, known, written.key_lines)
        missing_variables: list[Problem] = []
        self._document = cast("Table", interpolate(self._written, environ, missing_variables))
        self._problems += missing_variables
        # A missing variable leaves "" behind; what is wrong with that would only bury the cause.
        self._explained = {problem.path for problem in missing_variables}

    def config(self) -> Config:
        mqtt, kafka = self._mqtt(), self._kafka()
        forwarding = self._forwarding(mqtt.client_id if mqtt else "")
        if mqtt is None or kafka is None or self._problems:
            raise ConfigError(self._source, self._problems)
        return Config(mqtt, kafka, forwarding, tuple(self._warnings))

    def _add(self, problems: Iterable[Problem]) -> None:
        self._problems += (problem for problem in problems if problem.path not in self._explained)

    def _build(self, model: type[Model], section: Table, path: Path, line: int) -> Model | None:
        problems: list[Problem] = []
        built = build(model, section, path, line, problems)
        self._add(problems)
        return built

    def _section(self, key: str) -> Table | None:
        node = self._document.entries.get(key)
        if isinstance(node, Table):
            return node
        line = self._document.key_lines.get(key)
        self._add([Problem(line, key, "expected a section of keys" if node and not is_null(node) else "is required")])
        return None

    def _mqtt(self) -> MqttConnection | None:
        section = self._section("mqtt")
        if section is None:
            return None
        mqtt = self._build(MqttConnection, section, ("mqtt",), section.line)
        if mqtt is None:
            return None
        self._add(_not_supported_yet(mqtt, section))
        if not mqtt.client_id:
            self._warnings.append(
                "mqtt.client_id is not set: the sessions of mappings without a client id of their own are not durable, "
                "and the broker keeps nothing for them while they are not connected"
            )
        return mqtt

    def _kafka(self) -> KafkaConnection | None:
        section = self._section("kafka")
        if section is None:
            return None
        options = section.entries.get("config")
        if isinstance(options, Table):
            # As text, which is what librdkafka takes: a password 0123 is not the number 123.
            texts = {key: _as_text(node) for key, node in options.entries.items()}
            section = Table(
                section.line,
                section.entries | {"config": Table(options.line, texts, options.key_lines)},
                section.key_lines,
            )
        kafka = self._build(KafkaConnection, section, ("kafka",), section.line)
        if isinstance(options, Table):
            self._kafka_options(options, address_is_set=bool({"bootstrap_server", "port"} & section.entries.keys()))
        return kafka

    def _kafka_options(self, options: Table, *, address_is_set: bool) -> None:
        texts = {key: node.text for key, node in options.entries.items() if isinstance(node, Scalar)}
        present = {key: text for key, text in texts.items() if not is_null(options.entries[key])}
        try:
            translated = translate(present)
        except KafkaOptionsError as error:
            self._add(
                Problem(options.key_lines[key], dotted(("kafka", "config", key)), message)
                for key, message in error.problems
            )
            return
        self._warnings += translated.warnings
        if translated.bootstrap_servers is not None and address_is_set:
            self._warnings.append("kafka.config: bootstrap.servers wins over kafka.bootstrap_server and kafka.port")

    def _forwarding(self, base_client_id: str) -> tuple[FileEntry, ...]:
        node, written = self._document.entries.get("forwarding"), self._written.entries.get("forwarding")
        if node is None or is_null(node) or (isinstance(node, Sequence) and not node.items):
            self._warnings.append("forwarding has no entries: a file without entries deletes nothing")
            return ()
        if not isinstance(node, Sequence) or not isinstance(written, Sequence):
            self._add([Problem(node.line, "forwarding", "expected a list of mappings")])
            return ()
        entries: dict[int, FileEntry] = {}
        for index, (item, original) in enumerate(zip(node.items, written.items, strict=True)):
            path: Path = ("forwarding", index)
            if not isinstance(item, Table):
                self._add([Problem(item.line, dotted(path), "expected a mapping with name, mqtt and kafka")])
            elif mapping := self._build(Mapping, item, path, item.line):
                entries[index] = FileEntry(mapping, _digest(original), item.line)
        self._check_unique_names(node)
        self._check_unique_client_ids(entries, base_client_id)
        return tuple(entries.values())

    def _check_unique_names(self, forwarding: Sequence) -> None:
        # Of the entries as they are, because a name is also taken by one that is otherwise not valid.
        lines: dict[str, int] = {}
        for index, item in enumerate(forwarding.items):
            name = item.entries.get("name") if isinstance(item, Table) else None
            if not isinstance(name, Scalar) or is_null(name):
                continue
            if name.text in lines:
                where = dotted(("forwarding", index, "name"))
                self._add([Problem(name.line, where, f"the entry in line {lines[name.text]} has the same name")])
            lines.setdefault(name.text, name.line)

    def _check_unique_client_ids(self, entries: dict[int, FileEntry], base: str) -> None:
        first: dict[str, FileEntry] = {}
        for index, entry in entries.items():
            client_id = entry.mapping.client_id(base)
            other = first.setdefault(client_id, entry)
            if client_id and other.mapping.name != entry.mapping.name:
                where = dotted(("forwarding", index, "mqtt", "client_id"))
                message = f"the entry in line {other.line} has the same MQTT client id, and would take over its session"
                self._add([Problem(entry.line, where, message)])


def _not_supported_yet(mqtt: MqttConnection, section: Table) -> list[Problem]:
    """Refuse what is understood but what no adapter does so far: the one place to delete from when it does."""
    wanted = {"transport": mqtt.transport != "tcp", "tls": mqtt.tls is not None}
    return [
        Problem(section.key_lines[key], dotted(("mqtt", key)), "is not supported yet")
        for key, is_wanted in wanted.items()
        if is_wanted
    ]


def _as_text(node: Node) -> Node:
    return Scalar(node.line, node.text, node.text) if isinstance(node, Scalar) and not is_null(node) else node


def _digest(written: Node) -> str:
    canonical = json.dumps(plain(written), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
