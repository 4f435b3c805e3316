"""The mappings as a configuration file."""

from fastapi import APIRouter, Response

from server.api.access import READ
from server.api.problems import documented
from server.api.services import Provided
from server.config.export import export_forwarding

router = APIRouter(prefix="/config", tags=["configuration"])


@router.get(
    "/export",
    response_class=Response,
    dependencies=[READ],
    responses=documented("store-unavailable")
    | {200: {"content": {"text/yaml": {"schema": {"type": "string"}}}, "description": "`forwarding:` as YAML"}},
)
async def export(services: Provided) -> Response:
    """Export all mappings, paused ones too, as the `forwarding:` that bootstraps the same ones."""
    mappings = sorted((stored.spec for stored in await services.store.mappings()), key=lambda spec: spec.name)
    return Response(export_forwarding(mappings), media_type="text/yaml")
