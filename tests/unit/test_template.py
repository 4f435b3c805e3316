"""Templates for keys and headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.template import NotMappableError, TemplateError, compile_template


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{topic}", "plant/a/temperature"),
        ("{topic[0]}", "plant"),
        ("{topic[2]}", "temperature"),
        ("{mapping}/{topic[1]}!", "m/a!"),
        ("<{topic}>", "<plant/a/temperature>"),
        ("fixed", "fixed"),
        ("", ""),
        ("{topic[0]}{topic[1]}", "planta"),
    ],
)
def test_placeholders_are_filled_in(source: str, expected: str) -> None:
    assert compile_template(source, "m").render("plant/a/temperature") == expected


@given(st.text(alphabet="ab/{}", max_size=8), st.text(min_size=1))
def test_a_mapping_name_is_never_read_as_a_placeholder(name: str, topic: str) -> None:
    assert compile_template("{mapping}", name).render(topic) == name


@given(st.text(min_size=1))
def test_the_levels_joined_again_are_the_topic(topic: str) -> None:
    source = "/".join(f"{{topic[{level}]}}" for level in range(topic.count("/") + 1))
    assert compile_template(source, "").render(topic) == topic


def test_a_topic_with_too_few_levels_is_not_mappable() -> None:
    with pytest.raises(NotMappableError, match=r"needs topic level 2, but 'a/b' has only levels 0 to 1"):
        compile_template("{topic[2]}", "").render("a/b")


@pytest.mark.parametrize("source", ["{", "}", "{topic", "topic}", "{{topic}}", "{topic}}", "{a{topic}"])
def test_an_unbalanced_brace_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="brace without its partner"):
        compile_template(source, "")


@pytest.mark.parametrize(
    "source", ["{}", "{payload}", "{topic[]}", "{topic[-1]}", "{topic[a]}", "{topic[123456]}", "{ topic }"]
)
def test_an_unknown_placeholder_is_refused_naming_the_known_ones(source: str) -> None:
    with pytest.raises(TemplateError, match=r"known are \{topic\}, \{topic\[N\]\} and \{mapping\}"):
        compile_template(source, "")
