"""Who may use the API: whoever brings a token of the store, or the environment's; the store is asked once a second.

Tokens are few, so all of them are read at once. A token that is not among them is looked up anew, because it may have
been made a moment ago, by another process on the same store.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from server.api.admin_token import AccessError
from server.api.problems import ProblemError
from server.core.attempts import FailedAttempts
from server.core.tokens import MalformedTokenError, Scope, bearer, hash_of, same
from server.store.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.api.admin_token import AdminToken
    from server.store.stored import StoredToken
    from server.store.tokens import Tokens

_log = structlog.get_logger(__name__)

# So long a token that another process has revoked still works, and so long while the store does not answer.
FRESH_SECONDS = 1.0
STALE_SECONDS = 10.0
_USE_RECORDED_EVERY = timedelta(minutes=1)
_STORE_RETRY_SECONDS = 5.0
_CHALLENGE = 'Bearer realm="mkf"'

OPEN_WARNING = (
    "MKF_AUTH=none: whoever can reach the API can read and change everything; use tokens, unless something before it"
    " checks who comes"
)
NOBODY = (
    "nobody could use the API: it would listen on other addresses than loopback, and there is no token. Set"
    " MKF_ADMIN_TOKEN or MKF_ADMIN_TOKEN_FILE, or make a token by `mkf token create NAME --scope admin`, or set"
    " MKF_AUTH=none if something before the service checks who comes"
)


class Opening(Enum):
    """When the API is open to everybody."""

    NEVER = "never"
    WITHOUT_TOKENS = "as long as no token was ever made"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from, as events name it, and what they may do."""

    actor: str
    scope: Scope


ANYBODY = Caller("api", Scope.ADMIN)
ENVIRONMENT = Caller("admin (environment)", Scope.ADMIN)


@dataclass(frozen=True, slots=True)
class _Known:
    """The tokens by hash, as read at some time; `edition` is that of the gate when the reading began."""

    at: float
    edition: int
    tokens: dict[str, StoredToken]


class Gate:
    """Tells who a request comes from, and remembers when their token was used."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        opening: Opening,
        admin: AdminToken | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.warnings = (OPEN_WARNING,) if opening is Opening.ALWAYS else ()
        # How many requests were refused, by reason.
        self.refusals = dict.fromkeys(("missing", "malformed", "unknown", "expired", "revoked", "limited"), 0)
        self._tokens = tokens
        self._opening = opening
        self._admin = admin
        self._clock = clock
        self._now = now
        self._attempts = FailedAttempts()
        self._known: _Known | None = None
        self._edition = 0
        self._failure: tuple[float, str] | None = None
        self._reading = asyncio.Lock()
        self._uses: dict[int, datetime] = {}
        self._unwritten: set[int] = set()
        self._used = asyncio.Event()
        self._behind = False

    async def check(self) -> None:
        """See at the start that somebody can use the API, and warn if everybody can.

        Raises:
            AccessError: nobody could, or the environment's token can't be used.
            StoreUnavailableError: the tokens can't be read.
        """
        if self._admin is not None:
            self._admin.load()
        for warning in self.warnings:
            _log.warning("api_open", detail=warning)
        if self._opening is Opening.NEVER and self._admin is None:
            now = self._now()
            if not any(token.state(now) == "active" for token in await self._tokens.all()):
                raise AccessError(NOBODY)

    async def caller(self, header: str | None, address: str) -> Caller:
        """Who sends this Authorization header from this address.

        Raises:
            ProblemError: 401, it has no token that is accepted; 429, and this has happened too often. A token that is
                accepted is never limited: an ingress has one address for everybody.
            StoreUnavailableError: it can't be told.
        """
        if self._opening is Opening.ALWAYS:
            return ANYBODY
        arrived = self._clock()
        if await self._open(arrived):
            return ANYBODY
        if header is None:
            self.refusals["missing"] += 1
            raise ProblemError("unauthenticated", headers={"www-authenticate": _CHALLENGE})
        try:
            token_hash = hash_of(bearer(header))
        except MalformedTokenError as error:
            raise self._refusal(address, "malformed", str(error)) from None
        if self._admin is not None and self._admin.matches(token_hash):
            return ENVIRONMENT
        return await self._caller_with(token_hash, address, arrived)

    def forget(self) -> None:
        """What was read of the tokens holds no more: this process has changed them."""
        self._edition += 1

    async def record_uses(self) -> None:
        """Write down when tokens were used, until cancelled; what the store does not take is kept for later."""
        while True:
            await self._used.wait()
            self._used.clear()
            if not await self.write_uses():
                await asyncio.sleep(_STORE_RETRY_SECONDS)
                self._used.set()

    async def write_uses(self) -> bool:
        """Write down the uses that are not in the store yet; whether that worked."""
        uses = {token_id: self._uses[token_id] for token_id in self._unwritten}
        if not uses:
            return True
        try:
            await self._tokens.used(uses)
        except StoreUnavailableError as error:
            if not self._behind:
                _log.warning("token_uses_not_written", tokens=len(uses), reason=str(error))
            self._behind = True
            return False
        self._behind = False
        self._unwritten -= {token_id for token_id, at in uses.items() if self._uses[token_id] == at}
        return True

    async def _open(self, arrived: float) -> bool:
        if self._opening is not Opening.WITHOUT_TOKENS or self._admin is not None:
            return False
        # Also expired and revoked ones count: the API must not open because the last token has expired.
        return not (await self._read(arrived - FRESH_SECONDS, arrived)).tokens

    async def _caller_with(self, token_hash: str, address: str, arrived: float) -> Caller:
        try:
            known = await self._read(arrived - FRESH_SECONDS, arrived)
        except StoreUnavailableError:
            token = self._known_a_moment_ago(token_hash)
            if token is None:
                raise
        else:
            token = known.tokens.get(token_hash)
            # Whoever fails too often has to wait for a new token to become known by itself, within a second.
            if token is None and not self._attempts.wait(address, arrived):
                token = (await self._read(arrived, arrived)).tokens.get(token_hash)
        now = self._now()
        if token is None or not same(token.hash, token_hash):
            raise self._refusal(address, "unknown", "the token is not known here")
        if (state := token.state(now)) != "active":
            raise self._refusal(address, state, f"the token {token.name!r} is {state}", token=token.name)
        self._note_use(token, now)
        return Caller(f"token:{token.name}", token.scope)

    async def _read(self, since: float, arrived: float) -> _Known:
        """The tokens as they were at `since` or later, for a request that arrived at `arrived`.

        Raises:
            StoreUnavailableError: the store could not be read since then.
        """
        async with self._reading:
            known = self._known
            if known is not None and known.at >= since and known.edition == self._edition:
                return known
            # Those who waited for the same reading fail with it, not one after the other.
            if self._failure is not None and self._failure[0] >= arrived:
                raise StoreUnavailableError(self._failure[1])
            at, edition = self._clock(), self._edition
            try:
                tokens = await self._tokens.all()
            except StoreUnavailableError as error:
                self._failure = self._clock(), str(error)
                raise
            self._failure = None
            self._known = known = _Known(at, edition, {token.hash: token for token in tokens})
            return known

    def _known_a_moment_ago(self, token_hash: str) -> StoredToken | None:
        known = self._known
        if known is None or known.edition != self._edition or self._clock() - known.at > STALE_SECONDS:
            return None
        return known.tokens.get(token_hash)

    def _refusal(self, address: str, reason: str, detail: str, *, token: str | None = None) -> ProblemError:
        now = self._clock()
        if wait := self._attempts.wait(address, now):
            self.refusals["limited"] += 1
            return ProblemError("too-many-attempts", headers={"retry-after": str(math.ceil(wait))})
        self.refusals[reason] += 1
        self._attempts.failed(address, now)
        limited = self._attempts.wait(address, now) > 0
        _log.warning("authentication_failed", address=address, reason=reason, token=token, limited=limited)
        challenge = f'{_CHALLENGE}, error="invalid_token"'
        return ProblemError("unauthenticated", detail, headers={"www-authenticate": challenge})

    def _note_use(self, token: StoredToken, now: datetime) -> None:
        last = self._uses.get(token.id, token.last_used_at)
        if last is None or now - last >= _USE_RECORDED_EVERY:
            self._uses[token.id] = now
            self._unwritten.add(token.id)
            self._used.set()
