"""YAML as a tree in which every node knows its line.

Read from parser events rather than by `yaml.load`: no tag can construct anything, no alias can multiply, nesting
costs no stack, and no message repeats a piece of the text, which may be a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import yaml
from yaml.reader import ReaderError

from server.config.errors import ConfigError, Path, Problem, dotted

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster, but not in every build

MAX_DEPTH = 32

Value = str | int | float | bool | None

# The core schema of YAML 1.2, which the seed's parser follows too: `no` and `12:30` are strings.
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = {"", "~", "null", "Null", "NULL"}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_INT_DIGITS = 30  # longer ones are no number anybody means, and Python refuses to read very long ones
_QUOTED = re.compile(r"'[^']{2,}'|\"[^\"]{2,}\"")


def plain_value(text: str) -> Value:
    """Read an unquoted scalar."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text) and len(text) <= _MAX_INT_DIGITS:
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value. `variables` names the environment variables (and `file:PATH` the files) that went into it."""

    line: int
    text: str
    value: Value
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping of keys to nodes; `key_lines` has the line of each key."""

    line: int
    entries: dict[str, Node] = field(default_factory=dict)
    key_lines: dict[str, int] = field(default_factory=dict)


Node = Scalar | Sequence | Table


def is_null(node: Node) -> bool:
    """Whether nothing was written after the key, or `null`."""
    return isinstance(node, Scalar) and node.value is None


def plain(node: Node) -> object:
    """Return the node as dicts, lists and values."""
    if isinstance(node, Table):
        return {key: plain(child) for key, child in node.entries.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return node.value


def read_document(text: str, source: str) -> Node | None:
    """Parse the one YAML document in `text`; None if there is none.

    Raises:
        ConfigError: the text is not YAML, or has aliases, anchors, tags, duplicate keys, or nests too deeply.
    """
    reader = _Reader(text)
    try:
        root = reader.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and text[mark.index : mark.index + 1] == "\t":
            message = "a tab, where YAML takes only spaces"
        else:
            message = ", ".join(_QUOTED.sub("...", part) for part in (error.context, error.problem) if part)
        syntax = Problem(mark.line + 1 if mark else None, "", f"not valid YAML: {message}")
        raise ConfigError(source, [*reader.problems, syntax]) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(source, [Problem(line, "", f"not valid YAML: {error.reason}")]) from None
    if reader.problems:
        raise ConfigError(source, reader.problems)
    return root


def _line(event: yaml.Event) -> int:
    return cast("yaml.Mark", event.start_mark).line + 1  # events from a text always have marks


class _TooDeep(Exception):  # noqa: N818 - it ends the reading, which is not itself an error to anybody
    pass


class _Reader:
    """Builds the tree from parser events; its recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_LOADER))

    def document(self) -> Node | None:
        root: Node | None = None
        documents = 0
        try:
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._refuse(event, (), "a second document ('---') is not allowed")
                        break
                    root = self._node(next(self._events), ())
        except _TooDeep:
            return None
        return root

    def _node(self, event: yaml.Event, path: Path) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, path, "aliases are not supported; quote a value that starts with '*'")
            return Scalar(line, "", None)
        # A password that starts with & or ! and is not quoted would silently be taken for nothing.
        event = cast("yaml.ScalarEvent | yaml.CollectionStartEvent", event)
        if event.anchor is not None:
            self._refuse(event, path, "anchors are not supported; quote a value that starts with '&'")
        if event.tag is not None:
            self._refuse(event, path, "tags are not supported; quote a value that starts with '!'")
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(line, event.value, plain_value(event.value) if event.implicit[0] else event.value)
        if len(path) >= MAX_DEPTH:
            self._refuse(event, (), f"nested more than {MAX_DEPTH} levels deep")
            raise _TooDeep
        return self._table(line, path) if isinstance(event, yaml.MappingStartEvent) else self._sequence(line, path)

    def _sequence(self, line: int, path: Path) -> Sequence:
        sequence = Sequence(line)
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            sequence.items.append(self._node(event, (*path, len(sequence.items))))
        return sequence

    def _table(self, line: int, path: Path) -> Table:
        table = Table(line)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, (*path, "?"))
            if not isinstance(key, Scalar):
                self._refuse(event, path, "a key must be a single word")
                key = Scalar(key.line, "?", "?")
            child = self._node(next(self._events), (*path, key.text))
            if ":" in key.text and is_null(child) and child == Scalar(child.line, "", None):
                # `{password:secret}` is a key without a value, and keys are shown.
                head = key.text.partition(":")[0]
                self._refuse(event, (*path, head), "a space is missing behind the ':'")
                key = Scalar(key.line, head, head)
            if key.text in table.entries:
                first = table.key_lines[key.text]
                self._refuse(event, (*path, key.text), f"duplicate key, first used in line {first}")
            else:
                table.entries[key.text] = child
                table.key_lines[key.text] = key.line
        return table

    def _refuse(self, event: yaml.Event, path: Path, message: str) -> None:
        self.problems.append(Problem(_line(event), dotted(path), message))
