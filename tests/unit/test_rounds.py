"""Rounds: one for all that ask for it, in the context of who made them, until one fails."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar
from typing import Any

import pytest

from server.kafka.rounds import Rounds
from tests.virtualtime import in_virtual_time, settled

WHO: ContextVar[str] = ContextVar("who", default="")


@in_virtual_time
async def test_all_that_ask_get_one_round_and_later_another() -> None:
    made: list[str] = []
    WHO.set("sink")
    rounds = Rounds(lambda: made.append(WHO.get()))
    waiting = asyncio.create_task(rounds.until_one_fails())
    WHO.set("reader")
    rounds.soon()
    rounds.soon()
    await settled()
    assert made == ["sink"]
    rounds.soon()
    await settled()
    assert made == ["sink", "sink"]
    waiting.cancel()
    await asyncio.wait([waiting])
    rounds.soon()
    await settled()
    assert len(made) == 2


@in_virtual_time
async def test_what_a_round_raises_is_raised_and_ends_them() -> None:
    made: list[None] = []

    def fail() -> None:
        made.append(None)
        rounds.soon()
        raise ValueError("a bug")

    rounds = Rounds(fail)
    with pytest.raises(ValueError, match="a bug"):
        await rounds.until_one_fails()
    await settled()
    assert len(made) == 1


@in_virtual_time
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_round_that_fails_as_it_is_cancelled_is_not_reported_as_unnoticed(*, at_once: bool) -> None:
    unnoticed: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unnoticed.append(context))

    def fail() -> None:
        if at_once:
            waiting.cancel()
        raise ValueError("a bug")

    rounds = Rounds(fail)
    waiting = asyncio.create_task(rounds.until_one_fails())
    await asyncio.sleep(0)  # it has asked for its first round
    if not at_once:
        loop.call_soon(waiting.cancel)  # behind the round, and before the task hears of it
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    del rounds
    gc.collect()
    assert unnoticed == []
