"""Looks at a service every quarter of a second: probes, status, memory; before, during and after each fault."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import httpx

from tests.faults.history import Answer, MappingSample, Sample

if TYPE_CHECKING:
    from tests.service import Service

SECONDS = 0.25
# A service that needs longer than this for a probe would be restarted by whoever asks.
_ANSWER_SECONDS = 5.0
_NO_ANSWER = Answer(0)


class Watch:
    """Collects samples of one service; `latest` is the last of them."""

    def __init__(self, label: str, service: Service, samples: list[Sample]) -> None:
        self.latest = Sample(0.0, label, _NO_ANSWER, _NO_ANSWER, None)
        self._label = label
        self._service = service
        self._samples = samples
        self._looked = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled."""
        # A connection kept from before the service was killed would fail once it is back.
        fresh = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self._service.url, timeout=_ANSWER_SECONDS, limits=fresh) as client:
            while True:
                await self._look(client)
                looked, self._looked = self._looked, asyncio.Event()
                looked.set()
                await asyncio.sleep(SECONDS)

    async def next(self) -> Sample:
        """The next look."""
        await self._looked.wait()
        return self.latest

    async def _look(self, client: httpx.AsyncClient) -> None:
        memory = self._memory()
        ready, forwarding, mappings = await asyncio.gather(
            _probe(client, "/readyz"), _probe(client, "/healthz/forwarding"), self._mappings(client)
        )
        self.latest = Sample(time.time(), self._label, ready, forwarding, memory, mappings)
        self._samples.append(self.latest)

    def _memory(self) -> int | None:
        if not self._service.running:
            return None
        try:
            return self._service.private_memory()
        except ProcessLookupError:
            return None

    async def _mappings(self, client: httpx.AsyncClient) -> tuple[MappingSample, ...]:
        try:
            response = await client.get("/api/v1/mappings")
            if response.status_code != httpx.codes.OK:
                return ()
        except httpx.TransportError:
            return ()
        return tuple(self._mapping(item["status"]) for item in response.json()["items"])

    def _mapping(self, status: dict[str, Any]) -> MappingSample:
        counters = status["counters"]
        return MappingSample(
            mapping=f"{self._label}/{status['name']}",
            state=status["state"],
            reason=status["reason"],
            received=counters["received"],
            delivered=counters["delivered"],
            dead_lettered=counters["dead_lettered"],
            dropped=sum(counters["dropped"].values()),
            in_flight=status["in_flight"]["messages"],
        )


async def _probe(client: httpx.AsyncClient, path: str) -> Answer:
    try:
        response = await client.get(path)
    except httpx.TransportError:
        return _NO_ANSWER
    return Answer(response.status_code, "; ".join(response.json()["reasons"]))
