"""The YAML configuration file: read, interpolated, validated; all problems at once, before anything connects."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from server.config.document import Node, Scalar, Sequence, Table, is_null, plain, read_document
from server.config.errors import ConfigError, Path, Problem, dotted
from server.config.interpolation import interpolate
from server.config.schema import Model, build, did_you_mean
from server.core.connections import KafkaConnection, MqttConnection
from server.core.kafka_options import KafkaOptionsError, translate
from server.core.mapping import Mapping, effective_client_id

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
            Problem(written.key_lines[key], dotted((key,)), "unknown key" + did_you_mean(key, _SECTIONS))
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
        forwarding = self._forwarding()
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
        if mqtt is not None and not mqtt.client_id:
            self._warnings.append(
                "mqtt.client_id is not set: the sessions of mappings without a client id of their own are not durable, "
                "and the broker keeps nothing for them while they are not connected"
            )
        if _has_no_values(section.entries.get("tls")):
            self._warnings.append(
                "mqtt.tls has keys without values and counts as absent, so nothing is encrypted; write 'tls: true' for "
                "TLS with the system's authorities, or remove it"
            )
        if mqtt is not None and mqtt.tls is not None and mqtt.tls.insecure_skip_verify:
            self._warnings.append(
                "mqtt.tls.insecure_skip_verify is set: the broker's certificate is not checked, so anybody in between "
                "can read the credentials and messages, and answer in its place"
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
            translated = translate(present, gssapi_installed=find_spec("gssapi") is not None)
        except KafkaOptionsError as error:
            self._add(
                Problem(options.key_lines[key], dotted(("kafka", "config", key)), message)
                for key, message in error.problems
            )
            return
        self._warnings += translated.warnings
        if translated.bootstrap_servers is not None and address_is_set:
            self._warnings.append("kafka.config: bootstrap.servers wins over kafka.bootstrap_server and kafka.port")

    def _forwarding(self) -> tuple[FileEntry, ...]:
        node, written = self._document.entries.get("forwarding"), self._written.entries.get("forwarding")
        if node is None or is_null(node) or (isinstance(node, Sequence) and not node.items):
            return ()
        if not isinstance(node, Sequence) or not isinstance(written, Sequence):
            self._add([Problem(node.line, "forwarding", "expected a list of mappings")])
            return ()
        entries: list[FileEntry] = []
        for index, (item, original) in enumerate(zip(node.items, written.items, strict=True)):
            path: Path = ("forwarding", index)
            if not isinstance(item, Table):
                self._add([Problem(item.line, dotted(path), "expected a mapping with name, mqtt and kafka")])
            elif mapping := self._build(Mapping, item, path, item.line):
                entries.append(FileEntry(mapping, _digest(original), item.line))
        self._check_unique(node)
        return tuple(entries)

    def _check_unique(self, forwarding: Sequence) -> None:
        # Of the entries as they are, because names and client ids are also taken by those that are otherwise not valid.
        base = _scalar(self._document, "mqtt", "client_id")
        lines: dict[str, int] = {}
        owners: dict[str, tuple[str, int]] = {}
        for index, item in enumerate(forwarding.items):
            name, own = _scalar(item, "name"), _scalar(item, "mqtt", "client_id")
            if name is None or not name.text:
                continue
            if name.text in lines:
                where = dotted(("forwarding", index, "name"))
                self._add([Problem(name.line, where, f"the entry in line {lines[name.text]} has the same name")])
            lines.setdefault(name.text, name.line)
            client_id = effective_client_id(base.text if base else "", name.text, own.text if own else None)
            owner, line = owners.setdefault(client_id, (name.text, item.line))
            if client_id and owner != name.text:
                where = dotted(("forwarding", index, "mqtt", "client_id"))
                message = f"the entry in line {line} has the same MQTT client id, and would take over its session"
                self._add([Problem(own.line if own else item.line, where, message)])


def _scalar(node: Node, *path: str) -> Scalar | None:
    """Find a value; None if it is not there, null, or something else than a single value."""
    for key in path:
        if not isinstance(node, Table) or key not in node.entries:
            return None
        node = node.entries[key]
    return node if isinstance(node, Scalar) and not is_null(node) else None


def _has_no_values(section: Node | None) -> bool:
    """Whether it is a template that nobody filled in, as the seed's README has it."""
    return isinstance(section, Table) and bool(section.entries) and all(map(is_null, section.entries.values()))


def _as_text(node: Node) -> Node:
    return Scalar(node.line, node.text, node.text) if isinstance(node, Scalar) and not is_null(node) else node


def _digest(written: Node) -> str:
    canonical = json.dumps(plain(written), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
