"""What an operator does to a mapping: pause, resume, restart, reset its session."""

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from server.api.access import Writer
from server.api.etags import IfMatch, Precondition, etag
from server.api.gate import Caller
from server.api.paths import MappingName
from server.api.problems import ProblemError, documented
from server.api.services import Provided, Services
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.store.store import StoredMapping

router = APIRouter(prefix="/mappings/{name}", tags=["operation"])

LOST = (
    "The broker discards with the session what it has queued for this mapping and what it sent without getting an "
    "acknowledgement. None of it reaches Kafka, unless it had been written there already. What is published until the "
    "mapping is resumed is lost too: nobody queues it. Retained messages come again."
)
_COMMON = ("malformed-if-match", "mapping-not-found", "lost-race", "stale-if-match", "store-unavailable")


class Accepted(BaseModel):
    """The wish is stored; `state` is what is observed now and follows it soon."""

    name: str
    desired: Literal["running", "paused"]
    generation: int
    state: State


class SessionReset(Accepted):
    """The session is forgotten."""

    lost: str = Field(description="what this loses")


@router.post("/pause", status_code=202, responses=documented(*_COMMON))
async def pause_mapping(
    name: MappingName, if_match: IfMatch, response: Response, caller: Writer, services: Provided
) -> Accepted:
    """Pause a mapping: it drains and disconnects, and the broker queues for it. Nothing happens if it is paused."""

    def edit(spec: Mapping) -> Mapping:
        return spec.model_copy(update={"paused": True})

    return await _act(
        name, edit, action="pause", if_match=if_match, response=response, caller=caller, services=services
    )


@router.post("/resume", status_code=202, responses=documented(*_COMMON))
async def resume_mapping(
    name: MappingName, if_match: IfMatch, response: Response, caller: Writer, services: Provided
) -> Accepted:
    """Resume a mapping. One that failed starts anew; nothing happens if it runs."""

    def edit(spec: Mapping) -> Mapping:
        return spec.model_copy(update={"paused": False})

    stored = await services.store.mapping(name)
    failed = not stored.spec.paused and services.runtime.state(name) is State.FAILED
    return await _act(
        name, edit, action="resume", anew=failed, if_match=if_match, response=response, caller=caller, services=services
    )


@router.post("/restart", status_code=202, responses=documented("mapping-paused", *_COMMON))
async def restart_mapping(
    name: MappingName, if_match: IfMatch, response: Response, caller: Writer, services: Provided
) -> Accepted:
    """Restart a mapping: it drains, disconnects and starts again. A paused one can only be resumed."""

    def edit(spec: Mapping) -> Mapping:
        # Inside the transaction, so that a pause at the same time can't be followed by a restart.
        if spec.paused:
            raise ProblemError("mapping-paused", f"{name!r} is paused; resume it instead")
        return spec

    return await _act(
        name, edit, action="restart", anew=True, if_match=if_match, response=response, caller=caller, services=services
    )


@router.post(
    "/reset-session",
    status_code=202,
    responses=documented("mapping-not-paused", *_COMMON),
)
async def reset_session(
    name: MappingName, if_match: IfMatch, response: Response, caller: Writer, services: Provided
) -> SessionReset:
    """End a paused mapping's MQTT session, with everything the broker has queued for it. Resume begins a new one."""
    stored = await services.store.mapping(name)
    if_match.check(stored)
    state = services.runtime.state(name)
    if stored.spec.paused and state is not State.PAUSED:
        raise ProblemError("mapping-not-paused", f"{name!r} is still {state.value}; try again when it is paused")
    await services.store.reset_sessions(name, detail={"lost": LOST}, actor=caller.actor)
    services.runtime.session_reset(name)
    response.headers["etag"] = etag(stored)
    return SessionReset(**_accepted(stored, services), lost=LOST)


async def _act(
    name: str,
    edit: Callable[[Mapping], Mapping],
    *,
    action: str,
    anew: bool = False,
    if_match: Precondition,
    response: Response,
    caller: Caller,
    services: Services,
) -> Accepted:
    """Store a wish that says the same whatever the mapping's other settings are.

    So a generation counts only where the caller named one: two simultaneous pauses must both succeed.
    """
    expected = None
    if if_match.tags is not None:
        stored = await services.store.mapping(name)
        if_match.check(stored)
        expected = stored.generation
    with if_match.guarding():
        changed = await services.store.change(
            name, edit, expected=expected, action=action, actor=caller.actor, anew=anew
        )
    services.runtime.wake()
    response.headers["etag"] = etag(changed)
    return Accepted(**_accepted(changed, services))


def _accepted(stored: StoredMapping, services: Services) -> dict[str, Any]:
    return {
        "name": stored.spec.name,
        "desired": "paused" if stored.spec.paused else "running",
        "generation": stored.generation,
        "state": services.runtime.state(stored.spec.name),
    }
