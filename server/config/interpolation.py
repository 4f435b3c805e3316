"""`${VAR}` and `${VAR:-default}` in values, from the environment, `${file:PATH}` from a file. `$${` is a literal `${`.

Values are replaced after parsing and stay strings, so that no variable can change the structure of the file.
"""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from server.config.document import Node, Scalar, Sequence, Table
from server.config.errors import Path, Problem, dotted

if TYPE_CHECKING:
    from collections.abc import Mapping

_ESCAPED = "$${"
_PLACEHOLDER = re.compile(
    r"\$\$\{|\$\{file:(?P<file>[^}]+)\}|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{"
)
_FORMS = "expected ${NAME}, ${NAME:-default} or ${file:PATH}; a literal ${ is $${"
_MOST_FILE_BYTES = 64 * 1024


class _NoValueError(Exception):
    """There is nothing to put in a placeholder's place; the message says why."""


def escape(text: str) -> str:
    """Write `text` so that interpolation gives it back unchanged."""
    return text.replace("${", _ESCAPED)


def interpolate(node: Node, environ: Mapping[str, str], problems: list[Problem]) -> Node:
    """Return the tree with all placeholders replaced; what can't be replaced is added to `problems`."""
    return _interpolated(node, environ, problems, (), node.line)


def _interpolated(node: Node, environ: Mapping[str, str], problems: list[Problem], path: Path, line: int) -> Node:
    if isinstance(node, Table):
        entries = {
            key: _interpolated(child, environ, problems, (*path, key), node.key_lines[key])
            for key, child in node.entries.items()
        }
        return Table(node.line, entries, node.key_lines)
    if isinstance(node, Sequence):
        items = [
            _interpolated(item, environ, problems, (*path, index), item.line) for index, item in enumerate(node.items)
        ]
        return Sequence(node.line, items)
    if "${" not in node.text:
        return node

    sources: list[str] = []

    def replacement(found: re.Match[str]) -> str:
        try:
            return _value(found, environ, sources)
        except _NoValueError as error:
            problems.append(Problem(line, dotted(path), str(error)))
            return ""

    text = _PLACEHOLDER.sub(replacement, node.text)
    return Scalar(node.line, text, text, tuple(sources))


def _value(found: re.Match[str], environ: Mapping[str, str], sources: list[str]) -> str:
    """What stands for the placeholder; where it is from is added to `sources`."""
    if found[0] == _ESCAPED:
        return "${"
    if (file := found["file"]) is not None:
        sources.append(f"file:{file}")
        return _content(file)
    if (name := found["name"]) is not None:
        sources.append(name)
        return _variable(name, found["default"], environ)
    raise _NoValueError(_FORMS)


def _variable(name: str, default: str | None, environ: Mapping[str, str]) -> str:
    value = environ.get(name)
    if default is not None:
        value = value or default  # as in a shell, an empty variable takes the default too
    if value is None:
        raise _NoValueError(f"the environment variable {name} is not set")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _NoValueError(f"the environment variable {name} is not valid UTF-8")
    return value


def _content(path: str) -> str:
    """What the file says, without the line end that editors put behind it."""
    try:
        with FilePath(path).open("rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _NoValueError(f"the file {path} can't be read: {getattr(error, 'strerror', error)}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise _NoValueError(f"the file {path} is larger than {_MOST_FILE_BYTES} bytes")
    try:
        return content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise _NoValueError(f"the file {path} is not UTF-8") from None
