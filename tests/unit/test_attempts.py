"""Failed attempts to authenticate: so many an address, and bounded memory for all addresses there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.attempts import FailedAttempts


def fail(attempts: FailedAttempts, address: str, times: int, now: float) -> int:
    """Fail as often as is allowed, `times` at most; returns how often."""
    done = 0
    while done < times and attempts.wait(address, now) == 0:
        attempts.failed(address, now)
        done += 1
    return done


def test_an_address_may_fail_so_often_and_then_has_to_wait() -> None:
    attempts = FailedAttempts(burst=3, seconds=10)
    assert fail(attempts, "a", 10, now=100) == 3
    assert attempts.wait("a", 100) == 10
    assert attempts.wait("a", 104) == 6
    assert attempts.wait("b", 100) == 0
    assert fail(attempts, "a", 10, now=110) == 1
    assert fail(attempts, "a", 10, now=1000) == 3


@given(st.lists(st.floats(0, 20, allow_nan=False), max_size=60))
def test_in_any_time_no_more_fail_than_the_burst_and_what_came_back(gaps: list[float]) -> None:
    attempts = FailedAttempts(burst=4, seconds=5)
    now, failures = 0.0, []
    for gap in gaps:
        now += gap
        waiting = attempts.wait("a", now)
        assert 0 <= waiting <= 5
        if waiting == 0:
            attempts.failed("a", now)
            failures.append(now)
        else:
            assert attempts.wait("a", now + waiting) < 1e-9
    for index, first in enumerate(failures):
        assert all(count <= 4 + (last - first) / 5 + 1e-6 for count, last in enumerate(failures[index:], start=1)), (
            failures
        )


def test_addresses_beyond_the_limit_push_out_who_failed_longest_ago() -> None:
    attempts = FailedAttempts(burst=1, seconds=1000, most=2)
    for address in ("a", "b", "a2"):
        attempts.failed(address, 0)
    assert len(attempts) == 2
    assert attempts.wait("a", 0) == 0
    assert attempts.wait("b", 0) > 0
    attempts.failed("b", 0)
    attempts.failed("c", 0)
    assert (attempts.wait("a2", 0), attempts.wait("b", 0) > 0) == (0, True)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("unix", "unix", True),
        ("unix", "", False),
        ("x" * 64 + "a", "x" * 64 + "b", True),
    ],
)
def test_the_addresses_of_one_customer_count_as_one(one: str, other: str, together: bool) -> None:
    attempts = FailedAttempts(burst=1)
    attempts.failed(one, 0)
    assert (attempts.wait(other, 0) > 0) is together
