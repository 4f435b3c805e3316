"""The export bootstraps the same mappings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.config.export import export_forwarding
from server.config.load import parse_config
from server.core.mapping import KafkaTarget, Mapping, MqttSource, OnPoison

_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
# What YAML 1.1, YAML 1.2 or the interpolation could take for something else.
_TRAPS = st.sampled_from(
    ["no", "0o17", "0123", "12:30", "null", "~", "1e3", "true", "${HOME}", "$${x}", "*a", "&a", "!a", "- a", "a: b"]
)
_TEMPLATES = st.one_of(_TEXT.map(lambda text: text.replace("{", "").replace("}", "")), st.just("{topic[0]}:{mapping}"))
_FILTERS = st.one_of(_TEXT, _TRAPS).map(lambda text: text.replace("+", "").replace("#", "") or "a")

_MAPPINGS = st.builds(
    Mapping,
    name=st.one_of(_TRAPS, _TEXT).filter(lambda name: 1 <= len(name) <= 128 and name not in {".", ".."}),
    paused=st.booleans(),
    mqtt=st.builds(
        MqttSource, topic=_FILTERS | st.lists(_FILTERS, min_size=1, max_size=3), qos=st.sampled_from([0, 1, 2])
    ),
    kafka=st.builds(
        KafkaTarget,
        topic=st.sampled_from(["k", "1", "no", "0o17", "1e3", "-"]),
        key=st.none() | _TEMPLATES,
        headers=st.dictionaries(_TEXT.filter(bool), _TEMPLATES, max_size=2),
    ),
    wrap_as_json=st.booleans(),
    on_poison=st.sampled_from([OnPoison.STOP, OnPoison.DROP]),
    buffer_bytes=st.integers(1024, 2**40),
)


@given(st.lists(_MAPPINGS, max_size=4, unique_by=lambda mapping: mapping.name))
def test_exported_mappings_load_as_they_were(mappings: list[Mapping]) -> None:
    text = "mqtt: {host: h, client_id: c}\nkafka: {}\n" + export_forwarding(mappings)

    assert [entry.mapping for entry in parse_config(text, {}, "export").forwarding] == mappings


def test_defaults_are_left_out_and_pauses_are_kept() -> None:
    mapping = Mapping(name="n", paused=True, mqtt=MqttSource(topic="a/#"), kafka=KafkaTarget(topic="k", key=None))

    assert export_forwarding([mapping]) == (
        "forwarding:\n- name: n\n  paused: true\n  mqtt:\n    topic: a/#\n  kafka:\n    topic: k\n    key: null\n"
    )
