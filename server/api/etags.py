"""ETags and If-Match (RFC 9110, 13.1.1). A mapping's ETag is its generation."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from server.api.problems import ProblemError
from server.store.errors import GenerationChangedError
from server.store.store import StoredMapping

_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def etag(stored: StoredMapping) -> str:
    """The strong ETag of a mapping as stored."""
    return f'"{stored.generation}"'


@dataclass(frozen=True, slots=True)
class Precondition:
    """If-Match: the `tags` that are acceptable, or None where any generation is (no If-Match, or `*`)."""

    tags: frozenset[str] | None = None

    def check(self, stored: StoredMapping) -> None:
        """Compare with what is stored.

        Raises:
            ProblemError: 412, the ETag is none of the tags.
        """
        if self.tags is not None and etag(stored) not in self.tags:
            raise ProblemError("stale-if-match", f"the mapping's ETag is {etag(stored)} now; nothing was written")

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Make a race that is lost inside a 412 where the caller named generations; else it stays a 409."""
        try:
            yield
        except GenerationChangedError:
            if self.tags is None:
                raise
            raise ProblemError("stale-if-match") from None


def _precondition(
    if_match: Annotated[
        list[str] | None, Header(description="Write only if the mapping's ETag is one of these.", examples=['"3"'])
    ] = None,
) -> Precondition:
    value = ",".join(if_match or ())
    if if_match is None or value.strip() == "*":
        return Precondition()
    # 400 and not 412, which says that a condition was evaluated and is false (RFC 9110, 15.5.13): who gets that reads
    # the mapping again and repeats, here for ever. Nor may it be passed over: it was to protect a write.
    if rest := _TAG.sub("", value).strip(", \t"):
        raise ProblemError(
            "malformed-if-match",
            f'the quotes are part of an ETag: send If-Match: "{rest}"' if rest.isdecimal() else None,
        )
    # If-Match compares strongly: a weak tag is never equal to any.
    return Precondition(frozenset(tag for weak, tag in _TAG.findall(value) if not weak))


IfMatch = Annotated[Precondition, Depends(_precondition)]
