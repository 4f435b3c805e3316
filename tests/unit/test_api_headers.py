"""What browsers are told with every answer, and what other origins are not told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.api_under_test import MAPPINGS, Api, api_under_test

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path) as running:
        yield running


async def test_every_answer_has_the_headers_that_keep_browsers_in_bounds(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    answers = [await api.http.get(path) for path in (MAPPINGS, "/livez", "/docs", "/metrics", "/nowhere", "/")]
    answers.append(await api.http.post(MAPPINGS, headers={"origin": "http://evil.example"}))
    monkeypatch.setattr(api.runtime, "health", broken)
    answers.append(await api.http.get("/readyz"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 307, 403, 500]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    policies = [answer.headers["content-security-policy"] for answer in answers]
    assert [policy.startswith("default-src 'none'") for policy in policies] == [True, True, False, *[True] * 5]
    kept = [answer.headers.get("cache-control") for answer in answers]
    assert kept == ["no-store", "no-store", None, None, None, None, "no-store", None]


async def test_no_other_origin_may_read_what_it_asks_for(api: Api) -> None:
    asking = {"origin": "http://evil.example", "access-control-request-method": "PUT"}
    for method, path in (("OPTIONS", MAPPINGS), ("OPTIONS", f"{MAPPINGS}/a"), ("GET", MAPPINGS), ("GET", "/livez")):
        answer = await api.http.request(method, path, headers=asking)
        assert answer.status_code == (405 if method == "OPTIONS" else 200)
        assert not [name for name in answer.headers if name.startswith("access-control-")]
