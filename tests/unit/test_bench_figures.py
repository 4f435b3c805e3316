"""The arithmetic of the benchmark."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtest.bench import PLAIN, SERVICE, parsed, report
from loadtest.drain import Load
from loadtest.figures import Drain, MeasurementError, check_complete, seconds_until_last, summarize


def drain(rate: float, *, messages: int = 1_000, cpu: float = 0.01, peak: int = 50_000_000, repeats: int = 0) -> Drain:
    return Drain(messages, messages / rate, cpu, peak, repeats, unacknowledged=0)


def test_the_time_ends_with_the_last_append_and_not_with_the_first() -> None:
    assert seconds_until_last([10_400, 10_900, 10_100], 10.0) == pytest.approx(0.9)


def test_without_records_there_is_no_time() -> None:
    with pytest.raises(MeasurementError, match="no records"):
        seconds_until_last([], 10.0)


def test_clocks_that_differ_give_no_figure() -> None:
    with pytest.raises(MeasurementError, match="clock"):
        seconds_until_last([9_000], 10.0)


def test_rate_and_cpu_are_per_message() -> None:
    found = Drain(messages=2_000, seconds=0.5, cpu_seconds=0.01, peak_bytes=1, repeats=0, unacknowledged=0)
    assert found.rate == 4_000
    assert found.cpu_micros == pytest.approx(5)


def test_all_messages_in_order_per_key_are_complete_however_keys_interleave() -> None:
    assert check_complete([(b"a", 0), (b"a", 2), (b"b", 1), (b"b", 3)], 4) == 0


def test_repeats_are_counted_and_do_not_break_the_order() -> None:
    assert check_complete([(b"a", 0), (b"a", 1), (b"a", 0), (b"a", 1), (b"a", 2)], 3) == 2


def test_a_missing_message_is_named() -> None:
    with pytest.raises(MeasurementError, match="2 of 4 messages are missing, the first is 1"):
        check_complete([(b"a", 0), (b"a", 3)], 4)


def test_a_message_before_its_predecessor_is_named() -> None:
    with pytest.raises(MeasurementError, match="0 came after 1"):
        check_complete([(b"a", 1), (b"a", 0)], 2)


def test_a_summary_has_medians_and_the_worst_peak_and_repeats() -> None:
    found = summarize([drain(100, cpu=0.3, peak=7_000_000), drain(900, cpu=0.1, repeats=4), drain(200, cpu=0.2)])
    assert (round(found.rate), round(found.cpu_micros), found.peak_mb, found.repeats) == (200, 200, 50, 4)


def test_payloads_have_their_number_and_the_size_asked_for() -> None:
    payloads = list(Load(messages=12, size=20))
    assert {len(payload) for payload in payloads} == {20}
    assert [int(payload.split(b" ")[0]) for payload in payloads] == list(range(12))


@pytest.mark.parametrize(("rate", "enough"), [(199.0, False), (200.0, True)])
def test_the_ratio_decides(rate: float, enough: bool) -> None:
    said = io.StringIO()
    options = parsed(["--at-least", "20"])
    drains = {SERVICE: [drain(rate)], PLAIN: [drain(10, messages=100, cpu=0.1)]}
    assert report(drains, options, Console(file=said, width=120)) is enough
    assert f"{rate / 10:.1f} times the rate" in said.getvalue()
    assert "100.0 times less CPU" in said.getvalue()
    assert "The plain loop drained 100 messages only" in said.getvalue()
    assert ("less than 20 times" in said.getvalue()) is not enough


@pytest.mark.parametrize(
    "options", [["--messages", "0"], ["--plain-messages", "0"], ["--rounds", "0"], ["--size", "5"], ["--at-least", "x"]]
)
def test_options_that_measure_nothing_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed(options)
    assert refused.value.code == 2
    assert "error" in capsys.readouterr().err
