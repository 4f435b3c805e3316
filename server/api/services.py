"""What the routes work with, and the dependencies they share."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from server.api.gate import Gate
from server.api.ports import Runtime
from server.api.problems import ProblemError
from server.runtime.status import MappingStatus
from server.store.store import Store, StoredMapping


@dataclass(frozen=True, slots=True)
class Services:
    """The two sides of the API, what is wanted and what runs, and who may use it."""

    store: Store
    runtime: Runtime
    gate: Gate

    def status(self, stored: StoredMapping) -> MappingStatus:
        """The status of a mapping, with what there is to warn of for all of them."""
        status = self.runtime.status(stored)
        if not self.gate.warnings:
            return status
        return status.model_copy(update={"warnings": [*status.warnings, *self.gate.warnings]})


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
