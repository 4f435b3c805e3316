"""The API as one ASGI application."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import RedirectResponse

from server.api import actions, config_export, events, mappings, preview, problems, tokens
from server.api.access import NEEDS_TOKEN, authenticated
from server.api.docs import documentation
from server.api.failures import install_failures
from server.api.gate import Gate
from server.api.health import probes
from server.api.metrics import exposition
from server.api.openapi import DocumentedApi
from server.api.own_origin import OwnOrigin
from server.api.paths import API, EncodedPaths
from server.api.ports import Runtime
from server.api.services import Services, started
from server.store.store import Store

_TITLE = "MQTT to Kafka forwarder"
_DESCRIPTION = (
    "Mappings take messages from MQTT topic filters to a Kafka topic. A mapping's ETag is its generation: send it as "
    "If-Match to write only what you have read. Errors are problem documents (RFC 9457), their `type` says more. "
    "A name may contain any printable character and is percent-encoded in URLs."
)


def create_api(
    *,
    store: Store,
    runtime: Runtime,
    gate: Gate,
    ready_strict: bool,
    loopback_only: bool,
    metrics: Callable[[], Awaitable[bytes]],
    metrics_protected: bool = False,
    version: str = "0",
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Build the application; it does nothing with the store or the runtime before the first request.

    `loopback_only` says that it is listened for on loopback only, `metrics_protected` that /metrics needs a token too.
    Probes, the documentation and the OpenAPI document never need one: they hold no secret, and nothing of the mappings
    but the names of those that are stuck.
    """
    app = DocumentedApi(
        title=_TITLE,
        description=_DESCRIPTION,
        version=version,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses=problems.ANY_PROBLEM,
        # One schema per model, so that what GET shows and what PUT takes is visibly the same object.
        separate_input_output_schemas=False,
    )
    services = Services(store, runtime, gate)
    app.state.services = services
    app.add_middleware(EncodedPaths)
    app.add_middleware(OwnOrigin, loopback_only=loopback_only)
    install_failures(app)

    api = APIRouter(
        prefix=API,
        # What a route needs beyond that it says itself; a test sees that each does.
        dependencies=[Depends(authenticated), Depends(started)],
        responses=NEEDS_TOKEN | problems.documented("not-started"),
    )
    for part in (mappings, actions, preview, config_export, events, tokens):
        api.include_router(part.router)
    app.include_router(api)
    app.include_router(probes(services, ready_strict=ready_strict))
    app.include_router(exposition(metrics, protected=metrics_protected))
    app.include_router(problems.router)
    app.include_router(documentation(_TITLE))
    app.add_api_route("/", _to_docs, include_in_schema=False)
    return app


async def _to_docs() -> RedirectResponse:
    return RedirectResponse("/docs")
