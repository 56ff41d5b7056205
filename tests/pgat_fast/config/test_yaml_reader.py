"""The YAML that is read, by the core schema of YAML 1.2."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgat_fast.config.yaml_reader import REFUSED, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("+12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("tRUE", "tRUE"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("cuda:1", "cuda:1"),
        ("[1, a, 2.0]", [1, "a", 2.0]),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    document = read(f"key: {text}")
    assert document.faults == []
    assert document.value == {"key": value}
    assert type(document.value["key"]) is type(value)


def test_not_a_number_is_read_as_one() -> None:
    assert math.isnan(read("key: .nan").value["key"])


def test_every_key_has_its_line() -> None:
    document = read("# comment\na: 1\n\nsection:\n  b: [1,\n    2]\n  c: x\n")
    assert document.lines == {("a",): 2, ("section",): 4, ("section", "b"): 5, ("section", "c"): 7}


@pytest.mark.parametrize("text", ["", "  \n", "# only a comment\n", "---\n", "null"])
def test_a_text_without_content_has_no_value(text: str) -> None:
    document = read(text)
    assert (document.value, document.faults) == (None, [])


def test_faults_that_leave_the_rest_readable_are_all_found() -> None:
    document = read("a: &x 1\nb: *x\nc: !t 1\na: 2\n<<: {d: 1}\n[e]: 1\nf: 6\n")
    assert [line for line, _ in document.faults] == [1, 2, 3, 4, 5, 6]
    assert document.value == {"a": REFUSED, "b": REFUSED, "c": REFUSED, "f": 6}


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab1:-[]{}&*!|>'\"%@#,?\n\t \\Ux"))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    document = read(text)
    assert document.faults or document.value is not REFUSED
    lines = text.count("\n") + sum(text.count(mark) for mark in "\r\x85\u2028\u2029") + 1
    assert all(1 <= line <= lines for line, _ in document.faults)


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
def test_json_is_read_as_what_it_says(value: dict[str, Any]) -> None:
    document = read(json.dumps(value))
    assert (document.value, document.faults) == (value, [])
