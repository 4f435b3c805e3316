"""From the tree of the file to validated models, with every problem at its line."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from server.config.document import Node, Scalar, Sequence, Table, Value, is_null, plain, plain_value
from server.config.errors import Path, Problem, dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)

# A null here says something ("no key"); anywhere else it counts as absent, as in the seed.
_MEANINGFUL_NULLS: frozenset[Path] = frozenset({("kafka", "key")})
_SECRET_SECTIONS: tuple[Path, ...] = (("mqtt", "credentials"), ("kafka", "config"))


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known key is close, otherwise nothing."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def build(model: type[Model], section: Table, path: Path, line: int, problems: list[Problem]) -> Model | None:
    """Validate `section`, found at `path` and `line`; None if anything in it was added to `problems`."""
    unknown = list(_unknown_keys(model, section, path))
    problems.extend(unknown)
    found = _validated(model, _known(model, section), path, line)
    if isinstance(found, list):
        problems.extend(found)
        return None
    return None if unknown else found


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Find the fields of a model that are models themselves."""
    return {
        name: candidate
        for name, info in model.model_fields.items()
        for candidate in (info.annotation, *get_args(info.annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    }


def _unknown_keys(model: type[BaseModel], section: Table, path: Path) -> Iterator[Problem]:
    nested = _sections(model)
    for key, child in section.entries.items():
        if key not in model.model_fields:
            message = "unknown key" + did_you_mean(key, model.model_fields)
            yield Problem(section.key_lines[key], dotted((*path, key)), message)
        elif key in nested and isinstance(child, Table):
            yield from _unknown_keys(nested[key], child, (*path, key))


def _known(model: type[BaseModel], section: Table, inside: Path = ()) -> Table:
    """Leave out unknown keys, nulls, and optional sections in which all is null, unless to be there is enough."""
    nested = _sections(model)
    kept: dict[str, Node] = {}
    for key, child in section.entries.items():
        if key not in model.model_fields or (is_null(child) and (*inside, key) not in _MEANINGFUL_NULLS):
            continue
        if key in nested and isinstance(child, Table):
            optional = not model.model_fields[key].is_required()
            needs = any(field.is_required() for field in nested[key].model_fields.values())
            if optional and all(map(is_null, child.entries.values())) and (child.entries or needs):
                continue
            kept[key] = _known(nested[key], child, (*inside, key))
        else:
            kept[key] = child
    return Table(section.line, kept, section.key_lines)


def _validated(model: type[Model], section: Table, path: Path, line: int) -> Model | list[Problem]:
    document: Any = plain(section)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        for found in error.errors():
            _adapt(document, section, found)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        return _problems(error.errors(), section, path, line)


def _adapt(document: Any, section: Table, error: ErrorDetails) -> None:
    """Read a scalar as the type its field wants: `password: 0123` is text, `qos: ${QOS}` a number.

    The file's own text is taken, because the number 0123 has lost its zero.
    """
    inside, _, node = _locate(section, error["loc"], 0)
    if not isinstance(node, Scalar):
        return
    value: Value = node.value
    if error["type"] == "string_type" and value is not None:
        value = node.text
    elif error["type"] == "literal_error" and node.variables:
        value = plain_value(node.text)
    for step in inside[:-1]:
        document = document[step]
    document[inside[-1]] = value


def _locate(section: Table, loc: tuple[int | str, ...], line: int) -> tuple[Path, int, Node]:
    """Follow pydantic's location as far as the file has it; its names for the members of a union are passed over."""
    node: Node = section
    path: Path = ()
    for step in loc:
        if isinstance(node, Table) and step in node.entries:
            key = str(step)
            line, path = node.key_lines[key], (*path, key)
            node = node.entries[key]
        elif isinstance(node, Sequence) and isinstance(step, int):
            node = node.items[step]
            line, path = node.line, (*path, step)
    return path, line, node


def _problems(errors: list[ErrorDetails], section: Table, base: Path, line: int) -> list[Problem]:
    messages: dict[tuple[int, Path], list[str]] = {}
    for error in errors:
        inside, at, node = _locate(section, error["loc"], line)
        path = (*base, *inside)
        if error["type"] == "missing" or (not inside and error["loc"]):
            path = (*path, error["loc"][-1])  # a key that is not there, and whose default won't do
        messages.setdefault((at, path), []).append(_message(error, node, path))
    # A list that is wrong inside is also "not a string" where a string would do; only the inner error helps.
    return [
        Problem(at, dotted(path), " or ".join(found))
        for (at, path), found in messages.items()
        if not any(other[: len(path)] == path and other != path for _, other in messages)
    ]


def _message(error: ErrorDetails, node: Node, path: Path) -> str:
    if error["type"] == "missing":
        return "is required"
    if error["type"] in {"model_type", "dict_type"}:
        return "expected a section of keys"
    if error["type"] != "value_error":  # all others are pydantic's own words, which never repeat the value
        return error["msg"].replace("Input should be", "should be")
    if variables := sorted(set(_variables(node))):
        return f"not valid; the reason is not shown, because it may repeat the value of {', '.join(variables)}"
    if any(path[: len(secret)] == secret for secret in _SECRET_SECTIONS):
        return "not valid"
    return error["msg"].removeprefix("Value error, ")


def _variables(node: Node) -> Iterator[str]:
    if isinstance(node, Scalar):
        yield from node.variables
    else:
        for child in node.entries.values() if isinstance(node, Table) else node.items:
            yield from _variables(child)
