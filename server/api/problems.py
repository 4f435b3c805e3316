"""Errors as RFC 9457 problem documents: one table of what can go wrong, one mapper from exceptions to it."""

from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

from server.store.errors import (
    ClientIdTakenError,
    GenerationChangedError,
    MappingNotFoundError,
    MappingNotPausedError,
    NameTakenError,
    StoreError,
    StoreUnavailableError,
    TokenNameTakenError,
    TokenNotFoundError,
)

MEDIA_TYPE = "application/problem+json"
_PREFIX = "/problems/"
_RETRY_AFTER_SECONDS = "2"
_ERRORS_IN_DETAIL = 5
_MOST_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem; its slug and status never change."""

    status: int
    title: str
    explanation: str


KINDS: dict[str, Kind] = {
    "malformed-json": Kind(400, "Malformed JSON", "The body is not JSON, or not UTF-8."),
    "incomplete-body": Kind(400, "Incomplete body", "The connection ended before the whole body had arrived."),
    "malformed-if-match": Kind(
        400, "Malformed If-Match", 'If-Match must be a list of ETags with their quotes, such as "3", or *.'
    ),
    "unauthenticated": Kind(
        401,
        "Not authenticated",
        "A token is needed: Authorization: Bearer mkf_... `mkf token create` makes one, and so does POST "
        "/api/v1/tokens; the first comes from MKF_ADMIN_TOKEN.",
    ),
    "insufficient-scope": Kind(
        403,
        "Not allowed",
        "The token's scope does not allow this. read: whatever changes nothing; write: also mappings; admin: also "
        "tokens.",
    ),
    "cross-site": Kind(
        403,
        "Cross-site request",
        "The request's Origin is not its Host: a web page from elsewhere must not change anything here. A proxy has to "
        "pass Host on as it is.",
    ),
    "foreign-host": Kind(
        403,
        "Foreign host name",
        "The service listens on loopback only, and the request's Host is another name, as when a web page makes its "
        "own name lead here. Use localhost; a proxy on this machine has to send Host: localhost.",
    ),
    "not-found": Kind(404, "Not found", "Nothing is served at this path. /docs lists what there is."),
    "mapping-not-found": Kind(
        404,
        "No such mapping",
        "No mapping has this name. Names are percent-encoded in URLs, a '/' as %2F. PUT never creates; use POST.",
    ),
    "method-not-allowed": Kind(405, "Method not allowed", "The Allow header lists the methods of this path."),
    "name-taken": Kind(409, "Name taken", "A mapping of this name exists. Change it with PUT or PATCH."),
    "token-not-found": Kind(404, "No such token", "No token has this id. GET /api/v1/tokens lists all."),
    "token-name-taken": Kind(
        409, "Token name taken", "A token of this name is in use. Choose another name, or revoke that one first."
    ),
    "body-too-slow": Kind(408, "Body too slow", "A request's body must have arrived within 10 s."),
    "lost-race": Kind(
        409, "Lost a race", "The mapping was changed while this request ran; nothing was written. Read it and repeat."
    ),
    "mapping-paused": Kind(409, "Mapping is paused", "A paused mapping can't be restarted. Resume it instead."),
    "mapping-not-paused": Kind(
        409,
        "Mapping is not paused",
        "A session can only be reset while its mapping is paused, because a running one would use it meanwhile.",
    ),
    "stale-if-match": Kind(
        412, "Stale If-Match", "The mapping's ETag is none of If-Match; nothing was written. Read it again first."
    ),
    "body-too-large": Kind(413, "Body too large", "A request's body may have at most 1 MiB."),
    "unsupported-media-type": Kind(
        415, "Unsupported media type", "Send application/json; PATCH also takes application/merge-patch+json."
    ),
    "too-many-attempts": Kind(
        429,
        "Too many failed attempts",
        "From this address came too many tokens that are not accepted; Retry-After says how many seconds to wait. A "
        "token that is accepted does not have to.",
    ),
    "invalid": Kind(422, "Invalid input", "`errors` says where and why, as JSON pointers into the body."),
    "internal": Kind(500, "Internal error", "A fault of the service; its log has the details."),
    "store-unavailable": Kind(
        503,
        "Store unavailable",
        "The store can't be used now; `detail` says why. Nothing was written; repeat it later.",
    ),
    "not-started": Kind(
        503, "Not started yet", "The service has not started; it may wait for another process to release the store."
    ),
}


class FieldError(BaseModel):
    """One thing that is wrong with the input."""

    pointer: str | None = Field(None, description='JSON pointer into the body; "" is the whole body')
    parameter: str | None = Field(None, description="the query parameter or header, instead of a pointer")
    detail: str
    code: str = Field(description="stable, for programs")


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="stable; read it at this path", examples=["/problems/name-taken"])
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = Field(None, description="only with /problems/invalid")


class ProblemError(Exception):
    """A request that can't be answered as asked."""

    def __init__(
        self,
        slug: str,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: AbstractMapping[str, str] | None = None,
    ) -> None:
        self.kind = KINDS[slug]
        self.slug = slug
        self.detail = detail or self.kind.explanation
        self.errors = list(errors)
        self.headers = headers
        super().__init__(self.detail)

    def response(self) -> JSONResponse:
        """The problem document."""
        return problem_response(
            Problem(
                type=_PREFIX + self.slug,
                title=self.kind.title,
                status=self.kind.status,
                detail=self.detail,
                errors=self.errors or None,
            ),
            self.headers,
        )


def invalid(errors: Sequence[FieldError]) -> ProblemError:
    """Input that is understood and not acceptable; the detail repeats the errors for people."""
    lines = [
        f"{error.pointer or error.parameter or 'the body'}: {error.detail}" for error in errors[:_ERRORS_IN_DETAIL]
    ]
    if more := len(errors) - len(lines):
        lines.append(f"and {more} more")
    # A body of 1 MiB has room for a hundred thousand unknown keys.
    return ProblemError("invalid", "; ".join(lines), errors=errors[:_MOST_ERRORS])


_SLUGS: dict[type[StoreError], str] = {
    MappingNotFoundError: "mapping-not-found",
    MappingNotPausedError: "mapping-not-paused",
    NameTakenError: "name-taken",
    TokenNameTakenError: "token-name-taken",
    TokenNotFoundError: "token-not-found",
}


def of_store_error(error: StoreError) -> ProblemError:
    """What an error of the store means to a caller."""
    match error:
        case _ if type(error) in _SLUGS:
            return ProblemError(_SLUGS[type(error)], str(error))
        case ClientIdTakenError():
            return invalid([client_id_taken(error.client_id, error.mapping)])
        case GenerationChangedError():
            return ProblemError("lost-race")
        case StoreUnavailableError():
            detail = str(error) if error.undecided else f"{error}; nothing was written"
            return ProblemError("store-unavailable", detail, headers={"retry-after": _RETRY_AFTER_SECONDS})
        case _:
            return ProblemError("internal")


def client_id_taken(client_id: str, mapping: str) -> FieldError:
    """Two sessions can't share a client id: the broker would let them take over each other for ever."""
    detail = f"the MQTT client id {client_id!r} is that of the mapping {mapping!r}"
    return FieldError(pointer="/mqtt/client_id", detail=detail, code="client_id_taken")


def problem_response(problem: Problem, headers: AbstractMapping[str, str] | None = None) -> JSONResponse:
    """The HTTP response for a problem."""
    return JSONResponse(
        problem.model_dump(exclude_none=True), problem.status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def of_status(status: int, detail: str) -> Problem:
    """A problem that is nothing more than its HTTP status."""
    return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)


def documented(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that answers with these problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = KINDS[slug]
        line = f"`{_PREFIX}{slug}`: {kind.explanation}"
        if kind.status in responses:
            line = f"{responses[kind.status]['description']}\n\n{line}"
        responses[kind.status] = {"description": line, "content": _CONTENT}
    return responses


_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
# "default" also keeps FastAPI from documenting its own validation error, which this API never sends.
ANY_PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Any other problem, such as 503 or 500.", "content": _CONTENT}
}

router = APIRouter(include_in_schema=False)


@router.get(_PREFIX + "{slug}", response_class=PlainTextResponse)
async def explain(slug: str) -> str:
    """What a problem's type means."""
    if slug not in KINDS:
        raise ProblemError("not-found")
    kind = KINDS[slug]
    return f"{kind.status} {kind.title}\n\n{kind.explanation}\n"
