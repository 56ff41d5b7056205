"""Format errors in a configuration: what was found, what is expected, and what to do."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from pgat_fast.config.legacy import IGNORED, OLD_NAMES, PathPart, Renamed
from pgat_fast.config.schema import SECTION_OF, SECTIONS, Conflict

INVALID: Final = object()
"""Stands for a value whose error is listed already."""

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = 8

_BOOLEANS: Final = {
    **dict.fromkeys(("yes", "on", "y", "true"), "write true"),
    **dict.fromkeys(("no", "off", "n", "false"), "write false"),
}
# The names that JSON schemas and pydantic's own validators give to limits.
_LIMITS: Final = (
    ("at least", ("minimum", "ge")),
    ("above", ("exclusiveMinimum", "gt")),
    ("at most", ("maximum", "le")),
    ("below", ("exclusiveMaximum", "lt")),
)


class Problem(NamedTuple):
    """An error in the configuration, and its position among all errors."""

    position: int
    message: str


def format_problems(problems: Sequence[Problem]) -> str:
    """Return `problems` as one message, with a line for each, in the order of their positions."""
    lines = [problem.message for problem in sorted(problems, key=lambda problem: problem.position)]
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} errors in the configuration:", *lines])


def format_value(value: Any) -> str:
    """Return `value` as a configuration file would write it, cut off if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, int) and abs(value) >= 10**60:  # Python refuses to print more than 4300 digits
        return "an integer of more than 60 digits"
    return _SHORT.repr(value)


def invalid_values(section: str, values: Mapping[str, Any], error: ValidationError) -> Iterator[Conflict]:
    """Yield what is wrong according to `error`, which validation of `values` as `section` raised."""
    explained = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "conflicts":
            yield from detail["ctx"]["conflicts"]
            continue
        name = str(detail["loc"][0])
        if name not in explained and values[name] is not INVALID:
            explained.add(name)
            key = f"{section}.{name}"
            yield Conflict((key,), _wrong_value(key, values[name], detail))


def unknown_key(key: str, value: Any) -> str:
    """Return what is wrong with `key`, which is no setting, and the setting that is closest to it."""
    section, dot, name = key.partition(".")
    if not dot:
        if isinstance(value, Mapping):
            return "unknown section" + _did_you_mean(key, [*SECTIONS, *SECTION_OF, *OLD_NAMES])
        return "unknown key" + _did_you_mean(key, [*SECTION_OF, *OLD_NAMES, *SECTIONS, *IGNORED])
    if section not in SECTIONS:
        return f"unknown section {format_value(section)}" + _did_you_mean(section, [*SECTIONS])
    if name in SECTION_OF or name in OLD_NAMES or name in IGNORED:
        return f"section {section} has no such setting; did you mean {_full_name(name)}?"
    suggestion = _did_you_mean(name, list(SECTIONS[section].model_fields))
    return "unknown key" + (suggestion or _did_you_mean(name, [*SECTION_OF, *OLD_NAMES, *IGNORED]))


def _wrong_value(key: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return what is wrong with the `value` of the setting `key`, for which pydantic reported `error`."""
    expected = _expected_values(key)
    message = f"found {format_value(value)}, expected {expected}"
    if error["type"] == "value_error":
        message += f": {error['ctx']['error']}"
    elif isinstance(error["loc"][-1], int):
        message += f": item {error['loc'][1] + 1} is {format_value(error['input'])}"
    elif expected == "true or false" and isinstance(value, str) and value.lower() in _BOOLEANS:
        message += f": {_BOOLEANS[value.lower()]} (without quotes)"
    return message


def _did_you_mean(word: str, names: list[str]) -> str:
    """Return a question for the closest of `names`, or nothing if none is close."""
    by_lower_case = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f"; did you mean {_full_name(by_lower_case[matches[0]])}?" if matches else ""


def _full_name(name: str) -> str:
    """Return the setting `name` with its section, or with its current name if it is an old one."""
    old = OLD_NAMES.get(name)
    if name in SECTION_OF:
        return f"{SECTION_OF[name]}.{name}"
    if isinstance(old, Renamed | PathPart):
        return f"{name} (now {old.setting})"
    return name


@cache
def _expected_values(key: str) -> str:
    """Return the values that the setting `key` (`section.name`) takes, such as "an integer, at least 1"."""
    section, name = key.split(".")
    return _describe(_json_schema(section)[name])


@cache
def _json_schema(section: str) -> Mapping[str, Mapping[str, Any]]:
    return SECTIONS[section].model_json_schema()["properties"]


def _describe(schema: Mapping[str, Any]) -> str:
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        return ", or ".join(_describe(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        *others, last = schema["enum"]
        return f"{', '.join(others)} or {last}"
    types = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
    types |= {"string": "text that is not empty", "array": "a list of names, all different"}
    limits = (f", {words} {schema[name]}" for words, names in _LIMITS for name in names if name in schema)
    return types[schema["type"]] + "".join(limits)
