"""Probes: cheap, without a token, and honest about what each one asks."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from server.api.services import Services


class Verdict(BaseModel):
    """A probe's answer."""

    status: Literal["ok", "unavailable"]
    reasons: list[str] = []
    warnings: list[str] = Field([], description="what does not make it unavailable, and should not be so")


def probes(services: Services, *, ready_strict: bool) -> APIRouter:
    """Make the routes for whoever watches the process."""
    router = APIRouter(tags=["health"])
    unavailable: dict[int | str, dict[str, Any]] = {503: {"model": Verdict, "description": "no; `reasons` says why"}}

    def answer(reasons: list[str]) -> Response:
        return _answer(reasons, services.gate.warnings)

    @router.get("/livez", response_model=Verdict)
    @router.get("/health", response_model=Verdict)
    async def live() -> Response:
        """Tell that the event loop turns; /health is the same under its older name."""
        return answer([])

    @router.get("/startupz", response_model=Verdict, responses=unavailable)
    async def startup() -> Response:
        """Tell whether the service has started."""
        return answer(_not_started(services))

    @router.get("/readyz", response_model=Verdict, responses=unavailable)
    async def ready() -> Response:
        """Tell whether the API can serve: the store answers and the supervisor runs. Brokers don't count."""
        health = services.runtime.health()
        reasons = _not_started(services)
        if not reasons and not health.supervisor_running:
            reasons.append("the supervisor is not running")
        if health.store_error is not None:
            reasons.append(f"the store does not answer: {health.store_error}")
        if ready_strict:
            reasons += [f"mapping {name!r} is wanted running and is not" for name in health.not_running]
        return answer(reasons)

    @router.get("/healthz/forwarding", response_model=Verdict, responses=unavailable)
    async def forwarding() -> Response:
        """Tell whether every mapping that is wanted running makes progress; paused and idle ones are healthy."""
        health = services.runtime.health()
        reasons = [f"mapping {stuck.mapping!r}: {stuck.reason}" for stuck in health.stuck]
        if health.started and not health.supervisor_running:
            reasons.append("the supervisor is not running")
        return answer(reasons)

    return router


def _not_started(services: Services) -> list[str]:
    health = services.runtime.health()
    if health.waiting_for is not None:
        return [f"waiting: {health.waiting_for}"]
    return [] if health.started else ["the service has not started yet"]


def _answer(reasons: list[str], warnings: Sequence[str]) -> Response:
    verdict = Verdict(status="unavailable" if reasons else "ok", reasons=reasons, warnings=list(warnings))
    return JSONResponse(verdict.model_dump(), 503 if reasons else 200, headers={"cache-control": "no-store"})
