"""API tokens: made, listed, revoked. A token itself is in one answer only, the one to its creation."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from server.api.access import Admin
from server.api.bodies import read_json
from server.api.paths import API
from server.api.problems import documented
from server.api.services import Provided
from server.api.validation import parse
from server.core.tokens import Scope, check_name
from server.store.stored import StoredToken

router = APIRouter(prefix="/tokens", tags=["tokens"])


class TokenRequest(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what events and the log call it; free again when the token is expired or revoked")
    scope: Scope = Field(description="`admin` includes `write`, and that includes `read`")
    expires_at: AwareDatetime | None = Field(None, description="without it the token does not expire")

    @field_validator("name")
    @classmethod
    def _readable(cls, name: str) -> str:
        return check_name(name)

    @field_validator("expires_at")
    @classmethod
    def _to_come(cls, expires_at: datetime | None) -> datetime | None:
        if expires_at is None:
            return None
        if expires_at <= datetime.now(UTC):
            raise ValueError("it would have expired already")
        try:
            return expires_at.astimezone(UTC)
        except OverflowError:
            raise ValueError("a time so late can't be told in UTC") from None


class Token(BaseModel):
    """What is known of a token."""

    id: int
    name: str
    scope: Scope
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="up to a minute behind")
    revoked_at: datetime | None

    @classmethod
    def of(cls, stored: StoredToken) -> "Token":
        """The token as it is stored, without its hash."""
        return cls(**_known(stored))


class NewToken(Token):
    """A token that was made now."""

    token: str = Field(description="send it as `Authorization: Bearer ...`; it is shown here and never again")


class TokenList(BaseModel):
    """All tokens."""

    items: list[Token]


@router.get("", responses=documented("store-unavailable"))
async def list_tokens(caller: Admin, services: Provided) -> TokenList:
    """List all tokens that were ever made, in that order; the environment's is not among them."""
    del caller
    return TokenList(items=[Token.of(stored) for stored in await services.store.tokens.all()])


@router.post(
    "",
    status_code=201,
    responses=documented(
        "malformed-json",
        "token-name-taken",
        "body-too-large",
        "body-too-slow",
        "unsupported-media-type",
        "invalid",
        "store-unavailable",
    ),
)
async def create_token(request: Request, response: Response, caller: Admin, services: Provided) -> NewToken:
    """Make a token. Its secret is in this answer and never shown again."""
    asked = parse(TokenRequest, await read_json(request))
    try:
        stored, secret = await services.store.tokens.create(
            asked.name, asked.scope, expires_at=asked.expires_at, actor=caller.actor
        )
    finally:
        services.gate.forget()
    response.headers["location"] = f"{request.scope.get('root_path', '')}{API}/tokens/{stored.id}"
    return NewToken(**_known(stored), token=secret)


@router.delete("/{id}", status_code=204, responses=documented("token-not-found", "invalid", "store-unavailable"))
async def revoke_token(
    token_id: Annotated[int, Path(alias="id", ge=1, le=2**31 - 1)], caller: Admin, services: Provided
) -> None:
    """Revoke a token: from now on it is not accepted. Nothing happens if it is revoked already."""
    try:
        await services.store.tokens.revoke(token_id, actor=caller.actor)
    finally:
        services.gate.forget()


def _known(stored: StoredToken) -> dict[str, object]:
    return {
        "id": stored.id,
        "name": stored.name,
        "scope": stored.scope,
        "state": stored.state(datetime.now(UTC)),
        "created_at": stored.created_at,
        "expires_at": stored.expires_at,
        "last_used_at": stored.last_used_at,
        "revoked_at": stored.revoked_at,
    }
