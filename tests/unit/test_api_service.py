"""The parts around the mappings: probes, metrics, events, the export, OpenAPI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest
import yaml

from server.runtime.health import Health, Stuck
from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROBES = ["/livez", "/health", "/startupz", "/readyz", "/healthz/forwarding"]
WELL = Health(started=True, supervisor_running=True)
WAITING = Health(started=False, supervisor_running=False, waiting_for="the store's lock is held by pid 12")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path) as running:
        yield running


async def verdict(api: Api, probe: str) -> tuple[int, list[str]]:
    response = await api.http.get(probe)
    assert response.headers["cache-control"] == "no-store"
    assert response.json()["status"] == ("ok" if response.status_code == 200 else "unavailable")
    return response.status_code, response.json()["reasons"]


@pytest.mark.parametrize("probe", PROBES)
async def test_a_well_service_passes_every_probe_without_asking_the_store(api: Api, probe: str) -> None:
    await api.store.close()
    assert await verdict(api, probe) == (200, [])


async def test_a_service_that_waits_for_its_store_is_alive_and_not_ready(api: Api) -> None:
    api.runtime.facts = WAITING
    assert (await verdict(api, "/livez"))[0] == (await verdict(api, "/health"))[0] == 200
    for probe in ("/startupz", "/readyz"):
        assert await verdict(api, probe) == (503, ["waiting: the store's lock is held by pid 12"])
    assert await verdict(api, "/healthz/forwarding") == (200, [])


async def test_a_service_that_starts_is_not_ready(api: Api) -> None:
    api.runtime.facts = Health(started=False, supervisor_running=False)
    assert await verdict(api, "/readyz") == (503, ["the service has not started yet"])


async def test_nothing_but_probes_is_served_before_the_start(api: Api) -> None:
    api.runtime.facts = WAITING
    response = await api.http.post(MAPPINGS, json=document())
    assert "pid 12" in problem(response, 503, "not-started")["detail"]
    assert "retry-after" in response.headers
    api.runtime.facts = Health(started=False, supervisor_running=False)
    problem(await api.http.get("/api/v1/events"), 503, "not-started")
    assert await api.store.mappings() == []


async def test_readiness_tells_a_store_and_a_supervisor_that_are_gone(api: Api) -> None:
    api.runtime.facts = Health(started=True, supervisor_running=False, store_error="disk full")
    expected = ["the supervisor is not running", "the store does not answer: disk full"]
    assert await verdict(api, "/readyz") == (503, expected)
    assert await verdict(api, "/healthz/forwarding") == (503, expected[:1])
    assert await verdict(api, "/livez") == (200, [])


async def test_stuck_mappings_are_named_and_do_not_make_the_service_unready(api: Api) -> None:
    api.runtime.facts = Health(
        started=True, supervisor_running=True, stuck=(Stuck("a", "not running for 30 s"),), not_running=("a",)
    )
    assert await verdict(api, "/healthz/forwarding") == (503, ["mapping 'a': not running for 30 s"])
    assert await verdict(api, "/readyz") == (200, [])


async def test_strict_readiness_adds_the_mappings_that_should_run(tmp_path: Path) -> None:
    async with api_under_test(tmp_path, ready_strict=True) as api:
        assert await verdict(api, "/readyz") == (200, [])
        api.runtime.facts = Health(started=True, supervisor_running=True, not_running=("a",))
        assert await verdict(api, "/readyz") == (503, ["mapping 'a' is wanted running and is not"])


async def test_metrics_have_prometheus_content_type(api: Api) -> None:
    response = await api.http.get("/metrics")
    assert response.text == "m 1\n"
    assert response.headers["content-type"].startswith("text/plain; version=")


async def test_the_root_leads_to_the_documentation(api: Api) -> None:
    response = await api.http.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize("base", ["http://forwarder/docs", "http://proxy/prefix/docs"])
async def test_the_documentation_needs_nothing_from_outside(api: Api, base: str) -> None:
    page = await api.http.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    assert "url: 'openapi.json'" in page.text
    for reference in (*files, "openapi.json"):
        prefix, _, path = urljoin(base, reference).partition(base.removesuffix("docs"))
        assert prefix == ""
        response = await api.http.get(f"/{path}")
        assert (response.status_code, len(response.content) > 100) == (200, True)
    kinds = {Path(name).suffix: (await api.http.get(f"/{name}")).headers["content-type"] for name in files}
    assert kinds == {
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".png": "image/png",
    }


@pytest.mark.parametrize("path", ["/docs/redoc.standalone.js", "/docs/..%2Fcore.py", "/docs/none", "/redoc"])
async def test_nothing_else_is_served_beside_the_documentation(api: Api, path: str) -> None:
    problem(await api.http.get(path), 404, "not-found")


async def test_events_come_newest_first_in_pages(api: Api) -> None:
    for name in ("a", "b", "c"):
        await api.create(name)
    await api.http.delete(f"{MAPPINGS}/a")
    first = (await api.http.get("/api/v1/events", params={"limit": 3})).json()
    told = [(event["action"], event["mapping"], event["actor"]) for event in first["items"]]
    assert told == [("delete", "a", "api"), ("create", "c", "api"), ("create", "b", "api")]
    assert first["items"][0]["detail"]["client_ids"] == ["base-a"]
    assert first["items"][0]["at"].endswith("Z")
    rest = (await api.http.get("/api/v1/events", params={"before": first["next_before"]})).json()
    assert [event["mapping"] for event in rest["items"]] == ["a"]
    assert rest["next_before"] is None


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 501}, {"before": 0}, {"before": 2**63}, {"before": "x"}])
async def test_bad_event_pages_are_invalid(api: Api, query: dict[str, str | int]) -> None:
    found = problem(await api.http.get("/api/v1/events", params=query), 422, "invalid")
    assert [error["parameter"] for error in found["errors"]] == list(query)


async def test_the_export_is_the_forwarding_section_by_name_with_pauses(api: Api) -> None:
    await api.create("b", paused=True)
    await api.create("a")
    response = await api.http.get("/api/v1/config/export")
    assert response.headers["content-type"] == "text/yaml; charset=utf-8"
    exported = yaml.safe_load(response.text)["forwarding"]
    assert [(entry["name"], entry.get("paused", False)) for entry in exported] == [("a", False), ("b", True)]


async def test_openapi_documents_bodies_etags_and_problems(api: Api) -> None:
    found = (await api.http.get("/openapi.json")).json()
    schemas = found["components"]["schemas"]
    assert {"Mapping", "PreviewRequest", "Problem", "FieldError", "MappingStatus"} <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    assert set(schemas["Mapping"]["required"]) == {"name", "mqtt", "kafka"}
    put = found["paths"][f"{MAPPINGS}/{{name}}"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Mapping"}
    assert {parameter["name"].lower() for parameter in put["parameters"]} == {"name", "if-match"}
    assert {
        "200",
        "400",
        "401",
        "403",
        "404",
        "408",
        "409",
        "412",
        "413",
        "415",
        "422",
        "429",
        "503",
        "default",
    } == set(put["responses"])
    assert list(put["responses"]["412"]["content"]) == ["application/problem+json"]
    assert await api.http.get("/openapi.json")
    text = str(found)
    for name in text.split("#/components/schemas/")[1:]:
        assert name.split("'")[0] in schemas
    identifiers = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(identifiers) == len(set(identifiers))
