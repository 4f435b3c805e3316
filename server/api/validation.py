"""Input that is not acceptable, told with JSON pointers."""

from collections.abc import Sequence
from difflib import get_close_matches
from inspect import isclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from server.api.problems import FieldError, invalid
from server.core.mapping import Mapping

_OBJECT_EXPECTED = {"model_type", "model_attributes_type", "dict_type"}

_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], document: Any) -> _Model:
    """The document as `model`, whose types it must have: 0 is not false, and "5" not 5, as the OpenAPI document says.

    Raises:
        ProblemError: it is invalid; all errors at once.
    """
    try:
        return _validated(model, document)
    except ValidationError as error:
        raise invalid(field_errors(error, model, document)) from None


def parse_mapping(document: Any, *, name: str, paused: bool | None = None) -> Mapping:
    """The document as the mapping `name`, whose name can't change.

    A document without `name` means this mapping's; one without `paused` leaves that as it is, if `paused` is given.

    Raises:
        ProblemError: it is invalid; all errors at once.
    """
    errors = []
    if isinstance(document, dict):
        if paused is not None:
            document = {"name": name, "paused": paused, **document}
        if document.get("name") not in (name, None):
            detail = f"a name can't be changed; this mapping's is {name!r}"
            errors.append(FieldError(pointer="/name", detail=detail, code="immutable"))
    try:
        spec = _validated(Mapping, document)
    except ValidationError as error:
        errors += field_errors(error, Mapping, document)
    if errors:
        raise invalid(errors)
    return spec


def _validated(model: type[_Model], document: Any) -> _Model:
    # From JSON again, where a string may stand for an enumeration and nothing else for anything.
    return model.model_validate_json(to_json(document), strict=True)


def field_errors(error: ValidationError, model: type[BaseModel], document: Any) -> list[FieldError]:
    """Pydantic's errors as this API tells them, without the input they are about."""
    return [
        FieldError(
            pointer=_pointer(found["loc"], document, missing=found["type"] == "missing"),
            detail=_detail(found["type"], found["msg"], found["loc"], model),
            code=found["type"],
        )
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _pointer(location: Sequence[int | str], document: Any, *, missing: bool) -> str:
    """The JSON pointer of a pydantic location: without the names of a union's members, which are in it too."""
    pointer = ""
    here = document
    for part in location:
        if isinstance(here, dict) and (missing or part in here):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part]
        else:
            continue
        pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
    return pointer


def _detail(code: str, message: str, location: Sequence[int | str], model: type[BaseModel]) -> str:
    if code == "extra_forbidden":
        known = _fields(model, location[:-1])
        close = get_close_matches(str(location[-1]), known, n=1)
        return f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key; known are {', '.join(known)}"
    if code in _OBJECT_EXPECTED:
        return "Input should be a JSON object"
    return message.removeprefix("Value error, ")


def _fields(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if isclass(annotation) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
