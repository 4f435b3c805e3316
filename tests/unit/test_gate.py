"""Who may use the API, by a store that answers, changes, or does not answer: never open by accident, never deaf."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest
from structlog.testing import capture_logs

from server.api.admin_token import AccessError, AdminToken
from server.api.gate import ANYBODY, ENVIRONMENT, Caller, Gate, Opening
from server.api.problems import ProblemError
from server.core.tokens import Scope, hash_of
from server.runtime.metrics import RefusalsCollector
from server.store.errors import StoreUnavailableError
from server.store.stored import StoredToken
from server.tasks import ended
from tests.virtualtime import in_virtual_time, settled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.store.tokens import Tokens

SECRETS = ["mkf_" + letter * 43 for letter in "abc"]
ADMIN = "0123456789abcdef" * 4
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeTokens:
    """A store's tokens, which a test changes, holds up and breaks."""

    rows: list[StoredToken] = field(default_factory=list)
    failure: StoreUnavailableError | None = None
    reads: int = 0
    uses: list[dict[int, datetime]] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def all(self) -> list[StoredToken]:
        self.reads += 1
        found = list(self.rows)
        if self.held is not None:
            await self.held.wait()
        if self.failure is not None:
            raise self.failure
        return found

    async def used(self, uses: Mapping[int, datetime]) -> None:
        if self.failure is not None:
            raise self.failure
        self.uses.append(dict(uses))


@dataclass
class Scene:
    """A gate, its clocks, and the store's tokens."""

    tokens: FakeTokens = field(default_factory=FakeTokens)
    opening: Opening = Opening.NEVER
    admin: AdminToken | None = None
    time: float = 1000.0
    ticks: int = 0

    def __post_init__(self) -> None:
        self.gate = Gate(
            cast("Tokens", self.tokens),
            opening=self.opening,
            admin=self.admin,
            clock=self.clock,
            now=lambda: START + timedelta(seconds=self.time),
        )

    def clock(self) -> float:
        """As a real one: never twice the same."""
        self.ticks += 1
        return self.time + self.ticks * 1e-6

    def add(self, number: int, scope: Scope = Scope.WRITE, *, seconds: float | None = None) -> str:
        expires_at = None if seconds is None else START + timedelta(seconds=seconds)
        token = StoredToken(number, f"t{number}", hash_of(SECRETS[number]), scope, START, expires_at)
        self.tokens.rows.append(token)
        return SECRETS[number]

    def revoke(self, number: int) -> None:
        self.tokens.rows = [
            replace(token, revoked_at=START) if token.id == number else token for token in self.tokens.rows
        ]

    async def caller(self, secret: str | None, address: str = "10.0.0.1") -> Caller:
        return await self.gate.caller(None if secret is None else f"Bearer {secret}", address)

    async def refusal(self, secret: str | None, address: str = "10.0.0.1") -> ProblemError:
        with pytest.raises(ProblemError) as caught:
            await self.caller(secret, address)
        return caught.value


async def test_a_token_says_who_calls_and_what_they_may() -> None:
    scene = Scene()
    secret = scene.add(1, Scope.READ)
    assert await scene.caller(secret) == Caller("token:t1", Scope.READ)
    assert (await scene.refusal(None)).slug == "unauthenticated"
    assert (await scene.refusal(SECRETS[2])).slug == "unauthenticated"


async def test_the_store_is_read_once_a_second_however_many_call() -> None:
    scene = Scene()
    secret = scene.add(1)
    for _ in range(50):
        await scene.caller(secret)
    await asyncio.gather(*(scene.caller(secret) for _ in range(50)))
    assert scene.tokens.reads == 1
    scene.time += 1.1
    await asyncio.gather(*(scene.caller(secret) for _ in range(50)))
    assert scene.tokens.reads == 2


async def test_a_token_made_elsewhere_is_known_at_once() -> None:
    scene = Scene()
    await scene.caller(scene.add(1))
    assert await scene.caller(scene.add(2, Scope.ADMIN)) == Caller("token:t2", Scope.ADMIN)


async def test_a_token_revoked_elsewhere_stops_working_within_a_second() -> None:
    scene = Scene()
    secret = scene.add(1)
    await scene.caller(secret)
    scene.revoke(1)
    scene.time += 1.01
    assert (await scene.refusal(secret)).detail == "the token 't1' is revoked"


async def test_a_token_revoked_by_this_process_stops_working_at_once() -> None:
    scene = Scene()
    secret = scene.add(1)
    await scene.caller(secret)
    scene.revoke(1)
    scene.gate.forget()
    assert (await scene.refusal(secret)).slug == "unauthenticated"


async def test_what_was_being_read_while_a_token_was_revoked_does_not_count() -> None:
    scene = Scene()
    secret = scene.add(1)
    scene.tokens.held = asyncio.Event()
    early = asyncio.create_task(scene.caller(secret))
    await settled()
    scene.revoke(1)
    scene.gate.forget()
    scene.tokens.held.set()
    await early
    assert (await scene.refusal(secret)).slug == "unauthenticated"
    scene.tokens.failure = StoreUnavailableError("full")
    scene.gate.forget()
    with pytest.raises(StoreUnavailableError):
        await scene.caller(secret)


async def test_a_token_expires_by_itself() -> None:
    scene = Scene()
    secret = scene.add(1, seconds=1005)
    await scene.caller(secret)
    scene.time = 1005
    assert (await scene.refusal(secret)).detail == "the token 't1' is expired"


async def test_while_the_store_does_not_answer_a_token_known_a_moment_ago_works_and_no_other() -> None:
    scene = Scene()
    secret, other = scene.add(1), SECRETS[2]
    await scene.caller(secret)
    scene.tokens.failure = StoreUnavailableError("the disk is full")
    scene.time += 9
    assert await scene.caller(secret) == Caller("token:t1", Scope.WRITE)
    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        await scene.caller(other)
    scene.time += 2
    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        await scene.caller(secret)
    scene.tokens.failure = None
    assert await scene.caller(secret) == Caller("token:t1", Scope.WRITE)


async def test_a_token_that_expires_while_the_store_does_not_answer_is_refused() -> None:
    scene = Scene()
    secret = scene.add(1, seconds=1005)
    await scene.caller(secret)
    scene.tokens.failure = StoreUnavailableError("the disk is full")
    scene.time = 1006
    assert (await scene.refusal(secret)).slug == "unauthenticated"


async def test_those_who_wait_for_the_same_reading_fail_with_it() -> None:
    scene = Scene()
    secret = scene.add(1)
    scene.tokens.held, scene.tokens.failure = asyncio.Event(), StoreUnavailableError("too slow")
    waiting = [asyncio.create_task(scene.caller(secret)) for _ in range(20)]
    await settled()
    scene.time += 2
    scene.tokens.held.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [StoreUnavailableError] * 20
    assert scene.tokens.reads == 1


async def test_without_tokens_loopback_is_open_until_the_first_is_made() -> None:
    scene = Scene(opening=Opening.WITHOUT_TOKENS)
    assert await scene.caller(None) == ANYBODY
    assert await scene.caller(SECRETS[1]) == ANYBODY
    secret = scene.add(1)
    scene.time += 1.01
    assert (await scene.refusal(None)).slug == "unauthenticated"
    assert (await scene.caller(secret)).actor == "token:t1"


async def test_it_does_not_open_because_the_last_token_has_gone() -> None:
    scene = Scene(opening=Opening.WITHOUT_TOKENS)
    scene.add(1, seconds=1)
    scene.add(2)
    scene.revoke(2)
    for secret in (None, SECRETS[1], SECRETS[2]):
        assert (await scene.refusal(secret)).slug == "unauthenticated"


async def test_it_does_not_open_because_the_store_does_not_answer() -> None:
    scene = Scene(opening=Opening.WITHOUT_TOKENS)
    assert await scene.caller(None) == ANYBODY
    scene.tokens.failure = StoreUnavailableError("gone")
    scene.time += 1.01
    with pytest.raises(StoreUnavailableError):
        await scene.caller(None)


async def test_a_service_open_to_all_asks_nobody() -> None:
    scene = Scene(opening=Opening.ALWAYS, tokens=FakeTokens(failure=StoreUnavailableError("gone")))
    assert await scene.caller(None) == ANYBODY
    assert await scene.caller("nonsense") == ANYBODY
    assert scene.tokens.reads == 0


@pytest.mark.parametrize("opening", [Opening.NEVER, Opening.WITHOUT_TOKENS])
async def test_the_environments_token_works_without_the_store_and_closes_loopback(opening: Opening) -> None:
    scene = Scene(
        opening=opening,
        admin=AdminToken(token=ADMIN),
        tokens=FakeTokens(failure=StoreUnavailableError("gone")),
    )
    assert await scene.caller(ADMIN) == ENVIRONMENT
    assert (await scene.refusal(None)).slug == "unauthenticated"
    assert scene.tokens.reads == 0


async def test_failures_are_limited_for_each_address_and_good_tokens_never_are() -> None:
    scene = Scene()
    secret = scene.add(1)
    await scene.caller(secret)
    with capture_logs() as logs:
        slugs = [(await scene.refusal("wrong")).slug for _ in range(15)]
    assert slugs == ["unauthenticated"] * 10 + ["too-many-attempts"] * 5
    assert [entry["limited"] for entry in logs] == [False] * 9 + [True]
    assert scene.tokens.reads == 11, "who fails too often does not make us read the store"
    limited = await scene.refusal("wrong")
    assert limited.headers is not None
    assert int(limited.headers["retry-after"]) == 6
    assert (await scene.caller(secret)).actor == "token:t1"
    assert (await scene.refusal("wrong", "10.0.0.2")).slug == "unauthenticated"
    assert (await scene.refusal(None)).slug == "unauthenticated", "no token is no attempt"
    scene.time += 6
    assert (await scene.refusal("wrong")).slug == "unauthenticated"


async def test_refusals_are_counted_by_their_reason() -> None:
    scene = Scene(opening=Opening.NEVER)
    scene.add(1, seconds=1)
    scene.add(2)
    scene.revoke(2)
    for secret in (None, "a b", "wrong", SECRETS[1], SECRETS[2], SECRETS[2], *["wrong"] * 6):
        await scene.refusal(secret)
    counts = {"missing": 1, "malformed": 1, "unknown": 6, "expired": 1, "revoked": 2, "limited": 1}
    assert scene.gate.refusals == counts
    (family,) = RefusalsCollector(scene.gate.refusals).collect()
    assert {sample.labels["reason"]: sample.value for sample in family.samples} == counts


async def test_a_limited_address_gets_in_by_a_new_token_within_a_second() -> None:
    scene = Scene()
    await scene.caller(scene.add(1))
    for _ in range(11):
        await scene.refusal("wrong")
    secret = scene.add(2)
    assert (await scene.refusal(secret)).slug == "too-many-attempts"
    scene.time += 1.01
    assert (await scene.caller(secret)).actor == "token:t2"


async def test_a_header_that_is_no_bearer_token_is_refused_without_reading_the_store() -> None:
    scene = Scene()
    for header in ("", "Basic abc", "Bearer", "Bearer a b"):
        with pytest.raises(ProblemError) as caught:
            await scene.gate.caller(header, "a")
        assert caught.value.slug == "unauthenticated"
    assert scene.tokens.reads == 0


async def test_nobody_could_use_it_is_said_at_the_start() -> None:
    scene = Scene()
    scene.add(1, seconds=10)
    with pytest.raises(AccessError, match=r"MKF_ADMIN_TOKEN .*mkf token create.*MKF_AUTH=none"):
        await scene.gate.check()
    scene.add(2)
    await scene.gate.check()
    await Scene(opening=Opening.WITHOUT_TOKENS).gate.check()
    await Scene(admin=AdminToken(token=ADMIN)).gate.check()


async def test_a_start_with_an_admin_token_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    scene = Scene(opening=Opening.WITHOUT_TOKENS, admin=AdminToken(file=tmp_path / "none"))
    with pytest.raises(AccessError, match="none can't be read: No such file"):
        await scene.gate.check()


async def test_uses_are_noted_once_a_minute_and_written_aside() -> None:
    scene = Scene()
    secret = scene.add(1)
    writer = asyncio.create_task(scene.gate.record_uses())
    for _ in range(130):
        await scene.caller(secret)
        scene.time += 1
        await settled(3)
    first = START + timedelta(seconds=1000)
    assert scene.tokens.uses == [{1: first + timedelta(seconds=after)} for after in (0, 60, 120)]
    await ended(writer)


async def test_a_use_in_the_store_less_than_a_minute_old_is_not_written_again() -> None:
    scene = Scene()
    secret = scene.add(1)
    scene.tokens.rows = [replace(scene.tokens.rows[0], last_used_at=START + timedelta(seconds=990))]
    await scene.caller(secret)
    assert await scene.gate.write_uses()
    assert scene.tokens.uses == []


@in_virtual_time
async def test_uses_that_the_store_did_not_take_are_written_later() -> None:
    scene = Scene()
    first, second = scene.add(1), scene.add(2)
    writer = asyncio.create_task(scene.gate.record_uses())
    await scene.caller(first)
    scene.tokens.failure = StoreUnavailableError("full")
    with capture_logs() as logs:
        await asyncio.sleep(20)
    assert [entry["event"] for entry in logs] == ["token_uses_not_written"]
    scene.tokens.failure = None
    await scene.caller(second)
    await asyncio.sleep(6)
    at = START + timedelta(seconds=1000)
    assert scene.tokens.uses == [{1: at, 2: at}]
    await ended(writer)


def test_an_admin_token_is_matched_by_its_hash() -> None:
    token = AdminToken(token=ADMIN)
    assert token.matches(hash_of(ADMIN))
    assert not token.matches(hash_of(ADMIN + "x"))
    assert ADMIN not in repr(token)


def test_an_admin_tokens_file_is_read_again_and_nobody_comes_in_while_it_can_not_be_used(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"  {ADMIN}\n")
    token = AdminToken(file=file)
    token.load()
    assert token.matches(hash_of(ADMIN))
    other = ADMIN[::-1]
    with capture_logs() as logs:
        file.write_text(other)
        token.reload()
        assert (token.matches(hash_of(ADMIN)), token.matches(hash_of(other))) == (False, True)
        for content in (b"short", b"\xff" * 40, b"with spaces " * 5, b""):
            file.write_bytes(content)
            token.reload()
            token.reload()
            assert not token.matches(hash_of(other))
        file.unlink()
        token.reload()
        assert not token.matches(hash_of(other))
        file.write_text(other)
        token.reload()
        token.reload()
        assert token.matches(hash_of(other))
    unusable = ["admin_token_unusable"] * 5
    assert [entry["event"] for entry in logs] == ["admin_token_reloaded", *unusable, "admin_token_reloaded"]
    assert all("MKF_ADMIN_TOKEN_FILE" in entry["reason"] for entry in logs[1:6])
    assert "with spaces" not in str(logs)
