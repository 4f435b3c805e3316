"""Every request has an id, in the log and in the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from tests.unit.api_under_test import MAPPINGS, Api, api_under_test, document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEADER = "x-request-id"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_under_test(tmp_path) as running:
        yield running


async def test_an_id_that_a_proxy_gave_is_kept(api: Api) -> None:
    response = await api.http.get(MAPPINGS, headers={HEADER: "req-1/a.b:c_d+e="})
    assert response.headers[HEADER] == "req-1/a.b:c_d+e="


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, 'forged" level="error', "\u00e9"])
async def test_without_an_id_fit_for_logs_each_request_gets_its_own(api: Api, given: str | None) -> None:
    headers = [] if given is None else [(HEADER.encode(), given.encode())]
    ids = {(await api.http.get("/livez", headers=headers)).headers[HEADER] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(each) == 32 and each.isalnum() for each in ids)


async def test_what_may_change_something_is_logged_once_with_its_id_and_outcome(api: Api) -> None:
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        await api.http.get(MAPPINGS)
        await api.http.post(MAPPINGS, json=document(), headers={HEADER: "one"})
        await api.http.delete(f"{MAPPINGS}/gone", headers={HEADER: "two"})
    told = [(log["request_id"], log["method"], log["path"], log["status"]) for log in logs]
    assert told == [("one", "POST", MAPPINGS, 201), ("two", "DELETE", f"{MAPPINGS}/gone", 404)]


async def test_a_crash_has_the_id_in_the_log_and_in_the_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.runtime, "status", broken)
    await api.http.post(MAPPINGS, json=document())
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        response = await api.http.get(f"{MAPPINGS}/plant/status", headers={HEADER: "crashed"})
    assert (response.status_code, response.headers[HEADER]) == (500, "crashed")
    assert [log["request_id"] for log in logs] == ["crashed"]
