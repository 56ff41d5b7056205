"""YAML is read by the core schema of YAML 1.2; what no configuration needs is refused with its line."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgat_fast.config.yaml_reader import YamlError, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6), ("1E6", 1e6), (".5", 0.5), ("5.", 5.0), ("-.inf", -math.inf),
        ("12", 12), ("+12", 12), ("010", 10), ("0o10", 8), ("0x1F", 31),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("tRUE", "tRUE"),
        ("1_000", "1_000"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("cuda:1", "cuda:1"),
        ("'12'", "12"), ('"true"', "true"), ("9" * 5000, "9" * 5000), ("[1, a, 2.0]", [1, "a", 2.0]),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    document, _ = read(f"key: {text}")
    assert document == {"key": value}
    assert type(document["key"]) is type(value)


def test_nan_is_read_as_float() -> None:
    assert math.isnan(read("key: .nan")[0]["key"])


def test_keys_are_text() -> None:
    assert read("1: a\n1e-6: b\ntrue: c\nnull: d\n")[0] == {"1": "a", "1e-6": "b", "true": "c", "null": "d"}


def test_every_key_has_its_line() -> None:
    _, lines = read("# comment\na: 1\n\nsection:\n  b: [1,\n    2]\n  c: x\n")
    assert lines == {("a",): 2, ("section",): 4, ("section", "b"): 5, ("section", "c"): 7}


@pytest.mark.parametrize("text", ["", "  \n", "# only a comment\n", "---\n", "null"])
def test_text_without_content_is_none(text: str) -> None:
    assert read(text) == (None, {})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1, *x]", 2, "b: aliases (*name)"),
        ("a: 1\n*x : 1", 2, "aliases (*name)"),
        ("s:\n  b: !t 1", 2, "s.b: tags (!t)"),
        ("s:\n  b: 1\n  c: 1\n  b: 2", 4, "s.b: given twice, first in line 2"),
        ("{a: 1, a: 1}", 1, "a: given twice, first in line 1"),
        ("a: 1\n[e]: 1", 2, "a key must be a name, not a list or a mapping"),
        ("a: " + "[" * 9, 1, "a: nested deeper than 8 levels"),
    ],
)
def test_unsupported_syntax_is_refused_with_line_and_key(text: str, line: int, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        read(text)
    assert caught.value.line == line
    assert str(caught.value).startswith(message)


def test_equal_keys_of_different_mappings_are_not_duplicates() -> None:
    assert read("[{a: 1}, {a: 1, b: {a: 1}}]")[0] == [{"a": 1}, {"a": 1, "b": {"a": 1}}]


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab1:-[]{}&*!|>'\"%@#,?\n\t \\Ux"))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    error_line = 1
    try:
        read(text)
    except YamlError as error:
        error_line = error.line
    assert 1 <= error_line <= 1 + sum(text.count(line_break) for line_break in "\n\r\x85\u2028\u2029")


# JSON writes characters beyond U+FFFF as two escapes, which YAML does not put together.
texts = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(texts, trees, max_size=3))
def test_json_is_read_back(value: dict[str, Any]) -> None:
    assert read(json.dumps(value))[0] == value
