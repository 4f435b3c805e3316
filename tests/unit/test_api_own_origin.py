"""Web pages from elsewhere, in the browser of somebody who can reach the service, can't use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PLANT = f"{MAPPINGS}/plant"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path) as running:
        yield running


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path, loopback_only=True) as running:
        running.http.base_url = "http://localhost:8080"
        yield running


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://forwarder:81", "null", "http://", "forwarder", "[", ""]
)
async def test_a_page_from_elsewhere_changes_nothing(api: Api, origin: str) -> None:
    await api.create()
    for method, path in (
        ("POST", MAPPINGS),
        ("PUT", PLANT),
        ("PATCH", PLANT),
        ("DELETE", PLANT),
        ("POST", f"{PLANT}/pause"),
        ("POST", f"{PLANT}/none"),
    ):
        response = await api.http.request(method, path, json=document(), headers={"origin": origin})
        assert "Origin" in problem(response, 403, "cross-site")["detail"]
    assert (await api.store.mapping("plant")).generation == 1


@pytest.mark.parametrize("origin", ["http://forwarder", "https://forwarder", "HTTP://Forwarder"])
async def test_the_services_own_pages_may_change_what_they_show(api: Api, origin: str) -> None:
    await api.create()
    response = await api.http.post(f"{PLANT}/pause", headers={"origin": origin})
    assert response.status_code == 202


async def test_reading_is_left_to_the_browsers_own_rules(api: Api) -> None:
    response = await api.http.get(MAPPINGS, headers={"origin": "http://evil.example"})
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "host", ["evil.example:8080", "evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[", "localhost.evil"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", MAPPINGS), ("POST", f"{PLANT}/pause"), ("GET", "/metrics"), ("GET", "/docs")]
)
async def test_a_service_on_loopback_is_not_called_by_another_name(
    local: Api, host: str, method: str, path: str
) -> None:
    await local.create()
    response = await local.http.request(method, path, headers={"host": host, "origin": f"http://{host}"})
    assert "listens on loopback only" in problem(response, 403, "foreign-host")["detail"]
    assert (await local.store.mapping("plant")).generation == 1


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"]
)
async def test_a_service_on_loopback_is_called_by_the_names_of_loopback(local: Api, host: str) -> None:
    await local.create()
    response = await local.http.post(f"{PLANT}/pause", headers={"host": host, "origin": f"http://{host}"})
    assert response.status_code == 202


async def test_elsewhere_a_service_has_any_name(api: Api) -> None:
    assert (await api.http.get(MAPPINGS, headers={"host": "mkf.example"})).status_code == 200
