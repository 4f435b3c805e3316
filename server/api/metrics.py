"""The Prometheus endpoint."""

from collections.abc import Callable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST


def exposition(metrics: Callable[[], bytes]) -> APIRouter:
    """The route Prometheus scrapes."""
    router = APIRouter(tags=["health"])

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "for Prometheus"}},
    )
    async def scrape() -> Response:
        """Expose the metrics, per mapping and never per topic."""
        return Response(metrics(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
