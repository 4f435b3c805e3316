"""Who changed what."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from server.api.access import READ
from server.api.problems import documented
from server.api.services import Provided

router = APIRouter(tags=["events"])


class Event(BaseModel):
    """One change."""

    id: int
    at: datetime
    actor: str = Field(
        description="token:NAME, admin (environment), cli, file, service, or api where no token is needed"
    )
    action: str
    mapping: str | None = Field(description="null if it concerns none, as with tokens")
    detail: dict[str, Any]


class EventPage(BaseModel):
    """A page of events, newest first."""

    items: list[Event]
    next_before: int | None = Field(description="`before` for the next page; null on the last")


@router.get("/events", responses=documented("invalid", "store-unavailable"), dependencies=[READ])
async def list_events(
    services: Provided,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="only events older than this id")] = None,
) -> EventPage:
    """List who changed what, newest first."""
    # One more than asked for tells whether another page follows.
    found = await services.store.events(limit=limit + 1, before=before)
    page = found[:limit]
    return EventPage(
        items=[
            Event(
                id=event.id,
                at=event.at,
                actor=event.actor,
                action=event.action,
                mapping=event.mapping or None,
                detail=event.detail,
            )
            for event in page
        ],
        next_before=page[-1].id if len(found) > limit else None,
    )
