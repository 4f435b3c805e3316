"""`${VAR}` and `${VAR:-default}` in values, from the environment. `$${` stands for a literal `${`.

Values are replaced after parsing and stay strings, so that no variable can change the structure of the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from server.config.document import Node, Scalar, Sequence, Table
from server.config.errors import Path, Problem, dotted

if TYPE_CHECKING:
    from collections.abc import Mapping

_ESCAPED = "$${"
_PLACEHOLDER = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|\$\{")


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

    variables: list[str] = []

    def replacement(found: re.Match[str]) -> str:
        if found[0] == _ESCAPED:
            return "${"
        name = found["name"]
        if name is None:
            problems.append(Problem(line, dotted(path), "expected ${NAME} or ${NAME:-default}; a literal ${ is $${"))
            return ""
        variables.append(name)
        value = environ.get(name)
        if found["default"] is not None:
            value = value or found["default"]  # as in a shell, an empty variable takes the default too
        if value is None:
            problems.append(Problem(line, dotted(path), f"the environment variable {name} is not set"))
            return ""
        if any("\ud800" <= character <= "\udfff" for character in value):
            problems.append(Problem(line, dotted(path), f"the environment variable {name} is not valid UTF-8"))
            return ""
        return value

    text = _PLACEHOLDER.sub(replacement, node.text)
    return Scalar(node.line, text, text, tuple(variables))
