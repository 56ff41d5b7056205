"""Plain words for what is wrong with a configuration."""

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from pydantic import ValidationError

from pgat_fast.config.legacy import IGNORED, OLD_NAMES, PathPart, Renamed
from pgat_fast.config.schema import Broken, Config, Section
from pgat_fast.config.yaml_reader import REFUSED

SECTIONS: Final[Mapping[str, type[Section]]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""The sections by name, in the order of the schema."""

SECTION_OF: Final[Mapping[str, str]] = {
    name: section for section, schema in SECTIONS.items() for name in schema.model_fields
}
"""The section of each setting."""

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = 8

_SPOKEN: Final = {
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


def shown(value: Any) -> str:
    """`value` as a configuration file would write it, cut off where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    if value is REFUSED:
        return "nothing that can be read"
    if isinstance(value, int) and abs(value) >= 10**60:  # Python refuses to print more than 4300 digits
        return "an integer of more than 60 digits"
    return _SHORT.repr(value)


@cache
def expected(key: str) -> str:
    """What values the setting `key` (`section.name`) takes, such as "an integer, at least 1"."""
    section, name = key.split(".")
    return _kind(_properties(section)[name])


def wrong_value(key: str, value: Any, error: Mapping[str, Any]) -> str:
    """What is wrong with the `value` of the setting `key`, of which pydantic reported `error`."""
    text = f"found {shown(value)}, expected {expected(key)}"
    if error["type"] == "value_error":
        text += f": {error['ctx']['error']}"
    elif isinstance(error["loc"][-1], int):
        text += f": item {error['loc'][1] + 1} is {shown(error['input'])}"
    elif expected(key) == "true or false" and isinstance(value, str) and value.lower() in _SPOKEN:
        text += f": {_SPOKEN[value.lower()]} (without quotes)"
    return text


def broken_rules(section: str, values: Mapping[str, Any], error: ValidationError) -> Iterator[Broken]:
    """Each fault in `error`, which came of validating `values` as `section`."""
    explained = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "broken_rules":
            yield from detail["ctx"]["broken"]
            continue
        name = str(detail["loc"][0])
        if name not in explained and values[name] is not REFUSED:
            explained.add(name)
            key = f"{section}.{name}"
            yield Broken((key,), wrong_value(key, values[name], detail))


def unknown_key(key: str, value: Any) -> str:
    """What to say of a `key` that is no setting, with the closest one that is."""
    section, dot, name = key.partition(".")
    if not dot:
        if isinstance(value, Mapping):
            return "unknown section" + _did_you_mean(key, [*SECTIONS, *SECTION_OF, *OLD_NAMES])
        return "unknown key" + _did_you_mean(key, [*SECTION_OF, *OLD_NAMES, *SECTIONS, *IGNORED])
    if section not in SECTIONS:
        return f"unknown section {shown(section)}" + _did_you_mean(section, [*SECTIONS])
    if name in SECTION_OF or name in OLD_NAMES or name in IGNORED:
        return f"section {section} has no such setting; did you mean {_present(name)}?"
    close = _did_you_mean(name, list(SECTIONS[section].model_fields))
    return "unknown key" + (close or _did_you_mean(name, [*SECTION_OF, *OLD_NAMES, *IGNORED]))


def _did_you_mean(word: str, names: list[str]) -> str:
    """A question for the closest of `names`, or nothing where none is close."""
    by_case = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_case, n=1)
    return f"; did you mean {_present(by_case[close[0]])}?" if close else ""


def _present(name: str) -> str:
    """How to write the setting `name` today."""
    old = OLD_NAMES.get(name)
    if name in SECTION_OF:
        return f"{SECTION_OF[name]}.{name}"
    if isinstance(old, Renamed | PathPart):
        return f"{name} (now {old.setting})"
    return name


@cache
def _properties(section: str) -> Mapping[str, Mapping[str, Any]]:
    properties: Mapping[str, Mapping[str, Any]] = SECTIONS[section].model_json_schema()["properties"]
    return properties


def _kind(schema: Mapping[str, Any]) -> str:
    if "expected" in schema:
        return str(schema["expected"])
    if "anyOf" in schema:
        return ", or ".join(_kind(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        *others, last = schema["enum"]
        return f"{', '.join(others)} or {last}"
    kinds = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
    kinds |= {"string": "text that is not empty", "array": "a list of names, all different"}
    limits = (f", {words} {schema[name]}" for words, names in _LIMITS for name in names if name in schema)
    return kinds[schema["type"]] + "".join(limits)
