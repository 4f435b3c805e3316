"""The examples of how to secure the Kafka connection are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.config.load import parse_config
from server.core.kafka_options import translate

PAGE = (Path(__file__).parents[2] / "docs/kafka-security.md").read_text()
EXAMPLES = re.findall(r"```yaml\n# (.*?)\n(.*?)```", PAGE, flags=re.DOTALL)


def test_there_is_an_example_of_each_way() -> None:
    assert [title.partition(":")[0] for title, _ in EXAMPLES] == [
        "Confluent Cloud",
        "Amazon MSK",
        "Strimzi",
        "OAUTHBEARER",
    ]


@pytest.mark.parametrize("example", [example for _, example in EXAMPLES])
def test_an_example_is_a_valid_configuration_without_warnings(example: str) -> None:
    environment = dict.fromkeys(re.findall(r"\$\{(\w+)\}", example), "hunter2")

    config = parse_config(f"mqtt: {{host: h, client_id: c}}\n{example}", environment, "kafka-security.md")

    assert config.warnings == ()
    assert translate(config.kafka.config).producer["security_protocol"] in {"SSL", "SASL_SSL"}
