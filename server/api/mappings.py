"""Mappings: what is wanted, as documents that can be read, edited and put back."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from server.api.access import READ, Writer
from server.api.bodies import JSON, MERGE_PATCH, merge_patched, read_json
from server.api.etags import IfMatch, etag
from server.api.paths import MappingName, mapping_url
from server.api.problems import FieldError, client_id_taken, documented, invalid
from server.api.services import Provided, Services
from server.api.validation import parse, parse_mapping
from server.core.lifecycle import State
from server.core.mapping import Mapping
from server.core.topics import any_overlap
from server.runtime.status import MappingStatus
from server.store.store import StoredMapping

router = APIRouter(prefix="/mappings", tags=["mappings"])

_READ = documented("mapping-not-found", "store-unavailable")
_CREATE = documented(
    "malformed-json",
    "name-taken",
    "body-too-large",
    "body-too-slow",
    "unsupported-media-type",
    "invalid",
    "store-unavailable",
)
_WRITE = documented(
    "malformed-json",
    "malformed-if-match",
    "mapping-not-found",
    "lost-race",
    "stale-if-match",
    "body-too-large",
    "body-too-slow",
    "unsupported-media-type",
    "invalid",
    "store-unavailable",
)


class MappingItem(BaseModel):
    """One mapping in the list: what is wanted of it, and what is observed."""

    mapping: Mapping
    status: MappingStatus
    generation: int = Field(description="what the mapping's ETag is made of; every change raises it")
    origin: Literal["file", "api"] = Field(description="who created it: the configuration file or the API")
    created_at: datetime
    updated_at: datetime


class MappingPage(BaseModel):
    """A page of mappings, by name."""

    items: list[MappingItem]
    next_cursor: str | None = Field(description="for the next page; null on the last")


class Acceptable(BaseModel):
    """A mapping that would be accepted."""

    valid: bool = True
    warnings: list[str] = Field(description="what is allowed and may still surprise")


@router.get("", responses=documented("invalid", "store-unavailable"), dependencies=[READ])
async def list_mappings(
    services: Provided,
    state: Annotated[list[State] | None, Query(description="only mappings in one of these states")] = None,
    q: Annotated[
        str | None, Query(description="only mappings with this in their name, topic filters or Kafka topic; any case")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
) -> MappingPage:
    """List mappings by name, each with its observed state."""
    after = None if cursor is None else _name_in(cursor)
    found = [
        stored
        for stored in sorted(await services.store.mappings(), key=lambda stored: stored.spec.name)
        if (after is None or stored.spec.name > after)
        and (not q or _mentions(stored.spec, q.casefold()))
        and (not state or services.runtime.state(stored.spec.name) in state)
    ]
    page = found[:limit]
    return MappingPage(
        items=[
            MappingItem(
                mapping=stored.spec,
                status=services.status(stored),
                generation=stored.generation,
                origin=stored.origin,
                created_at=stored.created_at,
                updated_at=stored.updated_at,
            )
            for stored in page
        ],
        next_cursor=_cursor(page[-1].spec.name) if len(found) > len(page) else None,
    )


@router.post("", status_code=201, responses=_CREATE)
async def create_mapping(request: Request, response: Response, caller: Writer, services: Provided) -> Mapping:
    """Create a mapping. It starts at once, unless it is paused."""
    spec = parse(Mapping, await read_json(request))
    stored = await services.store.create(spec, actor=caller.actor)
    services.runtime.wake()
    response.headers["location"] = mapping_url(request, spec.name)
    response.headers["etag"] = etag(stored)
    return stored.spec


@router.post("/validate", responses=_CREATE, dependencies=[READ])
async def validate_mapping(request: Request, services: Provided) -> Acceptable:
    """Tell whether a mapping would be accepted; nothing is stored.

    A mapping whose name exists is judged as a change of that one.
    """
    spec = parse(Mapping, await read_json(request))
    client_id = services.runtime.client_id_of(spec)
    for other in await services.store.mappings():
        if client_id and other.spec.name != spec.name and services.runtime.client_id_of(other.spec) == client_id:
            raise invalid([client_id_taken(client_id, other.spec.name)])
    return Acceptable(warnings=_warnings(spec, durable=bool(client_id)))


@router.get("/{name}", responses=_READ, dependencies=[READ])
async def read_mapping(name: MappingName, response: Response, services: Provided) -> Mapping:
    """Read a mapping: the document to edit and PUT back. Its ETag is its generation."""
    stored = await services.store.mapping(name)
    response.headers["etag"] = etag(stored)
    return stored.spec


@router.put("/{name}", responses=_WRITE)
async def replace_mapping(
    *, name: MappingName, if_match: IfMatch, request: Request, response: Response, caller: Writer, services: Provided
) -> Mapping:
    """Replace a mapping. Never creates one. Without `name` it is the URL's; without `paused` that stays as it is."""
    document = await read_json(request)
    stored = await services.store.mapping(name)
    if_match.check(stored)
    spec = parse_mapping(document, name=name, paused=stored.spec.paused)
    with if_match.guarding():
        changed = await services.store.change(
            name, lambda _: spec, expected=stored.generation, action="replace", actor=caller.actor
        )
    return _changed(changed, response, services)


@router.patch("/{name}", responses=_WRITE)
async def patch_mapping(
    *, name: MappingName, if_match: IfMatch, request: Request, response: Response, caller: Writer, services: Provided
) -> Mapping:
    """Change a mapping by a JSON merge patch (RFC 7396): null removes a key, that is, restores its default."""
    patch = await read_json(request, MERGE_PATCH, JSON)
    stored = await services.store.mapping(name)
    if_match.check(stored)
    spec = parse_mapping(merge_patched(stored.spec.document(), patch), name=name)
    with if_match.guarding():
        changed = await services.store.change(
            name, lambda _: spec, expected=stored.generation, action="patch", actor=caller.actor
        )
    return _changed(changed, response, services)


@router.delete(
    "/{name}",
    status_code=204,
    responses=documented("malformed-if-match", "mapping-not-found", "lost-race", "stale-if-match", "store-unavailable"),
)
async def delete_mapping(name: MappingName, if_match: IfMatch, caller: Writer, services: Provided) -> None:
    """Delete a mapping. It drains, then its MQTT session is ended at the broker."""
    stored = await services.store.mapping(name)
    if_match.check(stored)
    with if_match.guarding():
        await services.store.delete(name, expected=stored.generation, actor=caller.actor)
    services.runtime.wake()


@router.get("/{name}/status", tags=["operation"], responses=_READ, dependencies=[READ])
async def read_status(name: MappingName, services: Provided) -> MappingStatus:
    """Observe a mapping."""
    return services.status(await services.store.mapping(name))


def _changed(stored: StoredMapping, response: Response, services: Services) -> Mapping:
    services.runtime.wake()
    response.headers["etag"] = etag(stored)
    return stored.spec


def _mentions(spec: Mapping, text: str) -> bool:
    topics = [spec.mqtt.topic] if isinstance(spec.mqtt.topic, str) else spec.mqtt.topic
    return any(text in candidate.casefold() for candidate in (spec.name, *topics, spec.kafka.topic))


def _cursor(name: str) -> str:
    return urlsafe_b64encode(name.encode()).decode()


def _name_in(cursor: str) -> str:
    try:
        name = urlsafe_b64decode(cursor.encode()).decode()
    except ValueError:
        name = ""
    # urlsafe_b64decode skips what is not base64, so only a cursor that comes out the same again was given by us.
    if not name or _cursor(name) != cursor:
        detail = "not a cursor of this API; begin again without one"
        raise invalid([FieldError(parameter="cursor", detail=detail, code="cursor")])
    return name


def _warnings(spec: Mapping, *, durable: bool) -> list[str]:
    warnings = []
    if not durable:
        warnings.append("without a client id the session is not durable: what arrives while disconnected is lost")
    if spec.mqtt.qos == 0:
        warnings.append("QoS 0: the broker neither queues messages while disconnected nor repeats lost ones")
    if any_overlap(spec.mqtt.filters):
        warnings.append(
            "topic filters overlap: a broker without subscription identifiers (any over MQTT 3.1.1) may send duplicates"
        )
    return warnings
