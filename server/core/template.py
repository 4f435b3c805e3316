"""Templates for keys and headers: `{topic}`, `{topic[N]}`, `{mapping}`, compiled once per mapping.

Every variable depends on the MQTT topic and the mapping only, so a rendered template may be cached per topic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_LEVEL = re.compile(r"topic\[(\d{1,5})\]")
KNOWN = "{topic}, {topic[N]} and {mapping}"


class TemplateError(ValueError):
    """The template can't be understood."""


class NotMappableError(ValueError):
    """The message has not what the template asks for, such as a fifth topic level."""


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. In `parts` a string stays, an int N is topic level N, -1 the topic."""

    source: str
    parts: tuple[str | int, ...]

    def render(self, topic: str) -> str:
        """Fill in the topic.

        Raises:
            NotMappableError: the topic has fewer levels than the template needs.
        """
        if self.parts == (_WHOLE,):
            return topic
        levels = topic.split("/")
        rendered = []
        for part in self.parts:
            if isinstance(part, str):
                rendered.append(part)
            elif part == _WHOLE:
                rendered.append(topic)
            elif part < len(levels):
                rendered.append(levels[part])
            else:
                raise NotMappableError(
                    f"{self.source!r} needs topic level {part}, but {topic!r} has only levels 0 to {len(levels) - 1}"
                )
        return "".join(rendered)


_WHOLE = -1


def compile_template(source: str, mapping: str) -> Template:
    """Compile a template for the mapping named `mapping`; levels count from 0.

    Raises:
        TemplateError: an unknown placeholder or an unbalanced brace.
    """
    parts: list[str | int] = []
    end = 0
    for found in _PLACEHOLDER.finditer(source):
        parts.append(_literal(source, source[end : found.start()]))
        parts.append(_variable(source, found[1], mapping))
        end = found.end()
    parts.append(_literal(source, source[end:]))
    return Template(source, tuple(part for part in parts if part != ""))


def _literal(source: str, text: str) -> str:
    if "{" in text or "}" in text:
        raise TemplateError(f"{source!r} has a brace without its partner; placeholders are {KNOWN}")
    return text


def _variable(source: str, name: str, mapping: str) -> str | int:
    if name == "topic":
        return _WHOLE
    if name == "mapping":
        return mapping
    if level := _LEVEL.fullmatch(name):
        return int(level[1])
    raise TemplateError(f"{source!r} has the unknown placeholder {{{name}}}; known are {KNOWN}")
