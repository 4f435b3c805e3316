"""What the routes work with, and the dependencies they share."""

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.api.ports import Runtime
from server.api.problems import ProblemError
from server.store.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """The two sides of the API: what is wanted, and what runs."""

    store: Store
    runtime: Runtime


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Provided = Annotated[Services, Depends(_services)]


async def started(services: Provided) -> None:
    """Refuse to serve before the store is this process's: another one may still be using it."""
    health = services.runtime.health()
    if not health.started:
        raise ProblemError(
            "not-started",
            f"waiting: {health.waiting_for}" if health.waiting_for else None,
            headers={"retry-after": "2"},
        )


_bearer = HTTPBearer(auto_error=False, description="the API's token")


class BearerToken:
    """A dependency that lets a request pass only with the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def __call__(self, given: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        """Compare in constant time, and as bytes: Starlette reads headers as Latin-1.

        Raises:
            ProblemError: 401.
        """
        if given is None or not secrets.compare_digest(given.credentials.encode("latin-1"), self._token):
            raise ProblemError("unauthorized", headers={"www-authenticate": "Bearer"})
