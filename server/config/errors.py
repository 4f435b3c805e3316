"""What is wrong with a configuration file: all of it at once, with lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Path = tuple[str | int, ...]


# Where a key ends to whoever wrote it: `{password secret}` and `{password:secret}` are keys as a whole to YAML.
_END_OF_WORD = re.compile("[ \t:]")


def dotted(path: Path) -> str:
    """Write a path as `forwarding[0].kafka.topic`; of a key of several words the first, the others may be a secret."""
    written = ""
    for step in path:
        if isinstance(step, int):
            written += f"[{step}]"
        else:
            word = _END_OF_WORD.split(step, maxsplit=1)[0]
            written += ("." if written else "") + (word if word == step else f"{word}…")
    return written


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` counts from 1, `path` is dotted; both are empty for the file as a whole."""

    line: int | None
    path: str
    message: str


class ConfigError(Exception):
    """The configuration can't be used; no message shows a secret or a value from the environment."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = sorted(problems, key=lambda problem: (problem.line or 0, problem.path))
        super().__init__("\n".join(self._written(problem) for problem in self.problems))

    def _written(self, problem: Problem) -> str:
        place = self.source if problem.line is None else f"{self.source}:{problem.line}"
        return _on_one_line(": ".join(part for part in (place, problem.path, problem.message) if part))


def _on_one_line(text: str) -> str:
    """Escape what is not printable: a key with a line end in it must not look like a second message."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
