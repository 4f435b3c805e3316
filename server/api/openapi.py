"""The application as FastAPI builds it, and what FastAPI can't know: bodies read by hand, ids around all of it."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from server.api.bodies import JSON, MERGE_PATCH
from server.api.paths import API
from server.api.preview import PreviewRequest
from server.api.problems import Problem
from server.api.request_ids import RequestIds
from server.core.mapping import Mapping

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
_BODIES: dict[tuple[str, str], dict[str, Any]] = {
    (f"{API}/mappings", "post"): {JSON: _MAPPING},
    (f"{API}/mappings/validate", "post"): {JSON: _MAPPING},
    (f"{API}/mappings/{{name}}", "put"): {JSON: _MAPPING},
    (f"{API}/mappings/{{name}}", "patch"): {MERGE_PATCH: _PATCH, JSON: _PATCH},
    (f"{API}/preview", "post"): {JSON: _PREVIEW},
}


class DocumentedApi(FastAPI):
    """A FastAPI whose document also has the bodies that routes read by hand, for their size, type and syntax.

    Requests get their id outside of everything else, so that also the log of a crash and its answer have it.
    """

    def build_middleware_stack(self) -> ASGIApp:
        """Everything between the server and the routes."""
        return RequestIds(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, schemas = models_json_schema(
                [(Mapping, "validation"), (PreviewRequest, "validation"), (Problem, "validation")], ref_template=_REF
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            for (path, method), content in _BODIES.items():
                document["paths"][path][method]["requestBody"] = {"required": True, "content": content}
            self.openapi_schema = document
        return self.openapi_schema
