"""The mappings as a configuration file."""

from fastapi import APIRouter, Response

from server.api.access import READ
from server.api.problems import documented
from server.api.services import Provided
from server.config.export import export_forwarding

router = APIRouter(prefix="/config", tags=["configuration"])

# Of what the YAML says, as OpenAPI describes structured text. A literal "${" is escaped in it, so a text may be longer
# than the mapping's schema allows.
_SCHEMA = {
    "type": "object",
    "properties": {"forwarding": {"type": "array", "items": {"type": "object"}}},
    "required": ["forwarding"],
    "additionalProperties": False,
}


@router.get(
    "/export",
    response_class=Response,
    dependencies=[READ],
    responses=documented("store-unavailable")
    | {200: {"content": {"text/yaml": {"schema": _SCHEMA}}, "description": "`forwarding:` as YAML"}},
)
async def export(services: Provided) -> Response:
    """Export all mappings, paused ones too, as the `forwarding:` that bootstraps the same ones."""
    mappings = sorted((stored.spec for stored in await services.store.mappings()), key=lambda spec: spec.name)
    return Response(export_forwarding(mappings), media_type="text/yaml")
