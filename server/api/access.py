"""What a route asks of whoever calls it: `dependencies=[READ]`, or a parameter `caller: Writer`."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase

from server.api.gate import Caller
from server.api.problems import ProblemError, documented
from server.api.services import Provided
from server.core.tokens import Scope


class _BearerToken(SecurityBase):
    """The Authorization header, in the OpenAPI document a bearer token."""

    def __init__(self) -> None:
        self.model = HTTPBearer(
            bearerFormat="mkf_...",
            description="An API token. `admin` includes `write`, and that includes `read`.",
        )
        self.scheme_name = "token"

    async def __call__(self, request: Request) -> str | None:
        """All of it, so that two headers are malformed and not one of them."""
        values = request.headers.getlist("authorization")
        return ", ".join(values) if values else None


async def authenticated(
    request: Request, header: Annotated[str | None, Depends(_BearerToken())], services: Provided
) -> Caller:
    """Who calls; asked once for each request.

    Raises:
        ProblemError: 401 or 429, see Gate.caller.
        StoreUnavailableError: the same.
    """
    if (caller := getattr(request.state, "caller", None)) is None:
        address = "" if request.client is None else request.client.host
        caller = request.state.caller = await services.gate.caller(header, address)
    found: Caller = caller
    return found


async def _authorized(needed: SecurityScopes, caller: Annotated[Caller, Depends(authenticated)]) -> Caller:
    for scope in needed.scopes:
        if not caller.scope.includes(Scope(scope)):
            raise ProblemError(
                "insufficient-scope",
                f"this needs a token with the scope {scope}, and {caller.actor} has {caller.scope}",
                headers={"www-authenticate": f'Bearer realm="mkf", error="insufficient_scope", scope="{scope}"'},
            )
    return caller


NEEDS_TOKEN = documented("unauthenticated", "insufficient-scope", "too-many-attempts")
READ = Security(_authorized, scopes=[Scope.READ.value])
Writer = Annotated[Caller, Security(_authorized, scopes=[Scope.WRITE.value])]
Admin = Annotated[Caller, Security(_authorized, scopes=[Scope.ADMIN.value])]
