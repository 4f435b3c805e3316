"""The Prometheus endpoint."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.access import NEEDS_TOKEN, READ


def exposition(metrics: Callable[[], Awaitable[bytes]], *, protected: bool) -> APIRouter:
    """The route Prometheus scrapes; `protected` says that this needs a token."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/metrics",
        response_class=Response,
        dependencies=[READ] if protected else [],
        responses=(NEEDS_TOKEN if protected else {})
        | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "for Prometheus"}},
    )
    async def scrape() -> Response:
        """Expose the metrics, per mapping and never per topic."""
        return Response(await metrics(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
