"""YAML as a tree with lines."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from server.config import document
from server.config.document import Table, plain, plain_value, read_document
from server.config.errors import ConfigError


def _problems(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(ConfigError) as refused:
        read_document(text, "c.yaml")
    return [(problem.line, problem.path, problem.message) for problem in refused.value.problems]


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def _each_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_LOADER", getattr(yaml, request.param))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("-5", -5),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("3.1.1", "3.1.1"),
        ("1" * 31, float("1" * 31)),
        (".", "."),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert plain_value(text) == value


def test_keys_know_their_lines() -> None:
    root = read_document("# comment\na: 1\n\nb:\n  - x\n  - {c: d}\n", "c.yaml")

    assert isinstance(root, Table)
    assert root.key_lines == {"a": 2, "b": 4}
    assert plain(root) == {"a": 1, "b": ["x", {"c": "d"}]}


def test_a_quoted_scalar_is_text() -> None:
    root = read_document("- \"1\"\n- 'true'\n- |\n  5\n", "c.yaml")

    assert root is not None
    assert plain(root) == ["1", "true", "5\n"]


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_no_document_is_none(text: str) -> None:
    assert read_document(text, "c.yaml") is None


def test_a_duplicate_key_names_both_lines() -> None:
    assert _problems("a:\n  b: 1\n  c: 2\n  b: 3\n") == [(4, "a.b", "duplicate key, first used in line 2")]


def test_aliases_anchors_and_tags_are_refused_all_at_once_without_repeating_them() -> None:
    problems = _problems("a: *hunter2\nb: &hunter2 1\nc: !hunter2 1\n? [k]\n: 1\n")

    assert [(line, path) for line, path, _ in problems] == [(1, "a"), (2, "b"), (3, "c"), (4, "")]
    assert "hunter2" not in str(problems)
    assert "quote a value" in problems[0][2]


def test_syntax_errors_have_their_line_and_do_not_repeat_the_text() -> None:
    [(line, _, message)] = _problems("a: 1\nb: !hunter2!x y\n")

    assert line == 2
    assert message.startswith("not valid YAML: ")
    assert "hunter2" not in message
    assert _problems("a: 1\nb: [1\nc: 2\n")[-1][0] in {2, 3}


@pytest.mark.parametrize(
    ("text", "line"),
    [("é:\n\tb: 1\n", 2), ("a:\r\n  b: 1\r\n \tc: 2\r\n", 3), ("a:\n  - b\n\t- c\n", 3), ("\ta: 1\n", 1)],
)
def test_a_tab_is_called_a_tab(text: str, line: int) -> None:
    assert _problems(text) == [(line, "", "not valid YAML: a tab, where YAML takes only spaces")]


def test_problems_before_a_syntax_error_are_kept() -> None:
    assert [problem[0] for problem in _problems("a: *x\nb: @\n")] == [1, 2]


def test_a_control_character_is_refused_with_its_line() -> None:
    assert _problems("a: 1\nb: \x01\n")[0][0] == 2


def test_a_second_document_is_refused() -> None:
    assert _problems("a: 1\n---\nb: 2\n") == [(2, "", "a second document ('---') is not allowed")]


@pytest.mark.parametrize("bomb", ["[" * 500_000, "{a: " * 100_000, "\n".join(" " * n + "a:" for n in range(1000))])
def test_deep_nesting_is_refused_at_once(bomb: str) -> None:
    start = time.monotonic()

    assert "nested more than 32 levels" in _problems(bomb)[0][2]
    assert time.monotonic() - start < 5


_TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | _TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_TEXT, children, max_size=3),
    max_leaves=10,
)


@given(_VALUES)
def test_what_json_writes_is_read_back(value: object) -> None:
    root = read_document(json.dumps(value, ensure_ascii=False), "c.yaml")

    assert root is not None
    assert plain(root) == value
