"""The page of Kafka's options is made of the table, and up to date."""

from __future__ import annotations

from scripts.kafka_options_page import PAGE, page
from server.core.kafka_option_table import TABLE
from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `make docs`"


def test_the_page_has_every_name_that_librdkafka_has_but_those_that_a_pattern_stands_for() -> None:
    text = page()
    shown = {name for name in PRODUCER_NAMES | CONSUMER_ONLY_NAMES | TABLE.keys() if f"`{name}`" in text}
    patterns = ("ssl.keystore.", "ssl.engine.", "sasl.oauthbearer.assertion.")
    missing = (PRODUCER_NAMES | CONSUMER_ONLY_NAMES | TABLE.keys()) - shown
    assert {name for name in missing if not name.startswith(patterns) and not name.endswith("_cb")} == set()
