"""Makes docs/kafka-options.md of the table that the code translates `kafka.config` by: `make docs`."""

from __future__ import annotations

import textwrap
from pathlib import Path

from server.core.kafka_option_table import TABLE, Option, Refused
from server.core.kafka_options import effect_of
from server.core.librdkafka_names import CONSUMER_ONLY_NAMES, PRODUCER_NAMES

PAGE = Path(__file__).parents[1] / "docs" / "kafka-options.md"

_HEAD = """\
# Options of `kafka.config`

`kafka.config` takes librdkafka's names, so that a configuration made for it works here. Values are text, as there: `5`,
`"5"` and `TRUE` are all understood. Null counts as absent. This page is made of the table in
`server/core/kafka_option_table.py` by `make docs`, and a test fails when it is not up to date. How to secure the
connection, with examples: [kafka-security.md](kafka-security.md).

## What works

Where two names set the same, the upper one wins, with a warning.

| name | values | meaning |
|---|---|---|
"""
_REFUSED = """
## What is refused

Each of these is an error at the start (exit code 2), and so is every name that librdkafka does not have.

| name | why, and what to do |
|---|---|
"""
_CONSUMER = """
What only a consumer has is refused too, for the forwarder only produces:
"""
_IGNORED = """
## What has no effect

Every other name of librdkafka's is accepted, and named in one warning at the start: the forwarder never gives up, and
bounds memory itself.
"""


def page() -> str:
    """The page as it should be."""
    works = "".join(
        f"| `{name}` | {row.values} | {row.means} |\n" for name, row in TABLE.items() if isinstance(row, Option)
    )
    refused = "".join(f"| `{name}` | {row.reason} |\n" for name, row in TABLE.items() if isinstance(row, Refused))
    ignored = sorted(name for name in PRODUCER_NAMES if effect_of(name) == "ignored")
    return (
        f"{_HEAD}{works}{_REFUSED}{refused}{_CONSUMER}{_names(sorted(CONSUMER_ONLY_NAMES))}{_IGNORED}{_names(ignored)}"
    )


def _names(names: list[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return "\n" + textwrap.fill(listed, 120, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
