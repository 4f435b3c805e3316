"""Failed attempts to authenticate, limited for each client address: a token bucket each, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

# Nobody guesses 256 bits: this is there to keep a client gone wrong, or a scanner, from filling the log and the store.
BURST = 10
SECONDS_PER_ATTEMPT = 6.0
MOST_ADDRESSES = 4096
_IPV6_BITS_OF_ONE_SITE = 64
_MOST_CHARACTERS = 64


class FailedAttempts:
    """Every address has `burst` attempts; each comes back after `seconds`. The clock is the caller's, in seconds.

    With more than `most` addresses the one that failed longest ago is forgotten.
    """

    def __init__(self, *, burst: int = BURST, seconds: float = SECONDS_PER_ATTEMPT, most: int = MOST_ADDRESSES) -> None:
        self._burst = burst
        self._seconds = seconds
        self._most = most
        # When all attempts of an address will be back: one number holds a whole bucket.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may fail once more; 0 if it may now."""
        return max(0.0, self._full_at.get(_site(address), now) - now - (self._burst - 1) * self._seconds)

    def failed(self, address: str, now: float) -> None:
        """Count a failure, which `wait` has allowed."""
        site = _site(address)
        self._full_at[site] = max(now, self._full_at.get(site, now)) + self._seconds
        self._full_at.move_to_end(site)
        while len(self._full_at) > self._most:
            self._full_at.popitem(last=False)


def _site(address: str) -> str:
    """Whose address it is: of IPv6 one customer has at least 2^64, so they count as one."""
    try:
        found = ip_address(address)
    except ValueError:
        return address[:_MOST_CHARACTERS]  # what a proxy says need not be an address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> _IPV6_BITS_OF_ONE_SITE << _IPV6_BITS_OF_ONE_SITE))
    return str(found)
