"""The application as FastAPI builds it, and what FastAPI can't know: bodies read by hand, ids around all of it."""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.api.bodies import JSON, MERGE_PATCH
from server.api.headers import SecurityHeaders
from server.api.paths import API
from server.api.preview import PreviewRequest
from server.api.problems import Problem
from server.api.request_ids import RequestIds
from server.api.tokens import TokenRequest
from server.core.mapping import Mapping

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_REF = "#/components/schemas/{model}"
_MAPPING_EXAMPLE = {"name": "plant", "mqtt": {"topic": "plant/#"}, "kafka": {"topic": "plant_data"}}
_MAPPING = {"schema": {"$ref": _REF.format(model="Mapping")}, "example": _MAPPING_EXAMPLE}
_PATCH = {
    "schema": {"type": "object", "description": "any part of a mapping; null removes a key"},
    "example": {"mqtt": {"qos": 2}, "dead_letter_topic": None},
}
_PREVIEW = {
    "schema": {"$ref": _REF.format(model="PreviewRequest")},
    "example": {"mapping": _MAPPING_EXAMPLE, "message": {"topic": "plant/hall-1", "payload": "21.5"}},
}
_TOKEN = {
    "schema": {"$ref": _REF.format(model="TokenRequest")},
    "example": {"name": "ci", "scope": "write", "expires_at": "2099-01-01T00:00:00Z"},
}
_BODIES: dict[tuple[str, str], dict[str, Any]] = {
    (f"{API}/mappings", "post"): {JSON: _MAPPING},
    (f"{API}/mappings/validate", "post"): {JSON: _MAPPING},
    (f"{API}/mappings/{{name}}", "put"): {JSON: _MAPPING},
    (f"{API}/mappings/{{name}}", "patch"): {MERGE_PATCH: _PATCH, JSON: _PATCH},
    (f"{API}/preview", "post"): {JSON: _PREVIEW},
    (f"{API}/tokens", "post"): {JSON: _TOKEN},
}


class DocumentedApi(FastAPI):
    """A FastAPI whose document also has the bodies that routes read by hand, for their size, type and syntax.

    All its answers, also those to its own errors, have the headers of SecurityHeaders, and each request has an id.
    """

    def build_middleware_stack(self) -> "ASGIApp":
        """The application with what is around it, outermost, where also internal errors pass."""
        return RequestIds(SecurityHeaders(super().build_middleware_stack()))

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, schemas = models_json_schema(
                [(model, "validation") for model in (Mapping, PreviewRequest, TokenRequest, Problem)],
                ref_template=_REF,
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            for (path, method), content in _BODIES.items():
                document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
            self.openapi_schema = document
        return self.openapi_schema
