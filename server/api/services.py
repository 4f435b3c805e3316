"""What the routes work with, and the dependencies they share."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

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
