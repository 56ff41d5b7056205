"""A strict reader of the YAML that configuration files need: mappings, lists and scalars.

Built on PyYAML's event stream, before any Python object is made, so that nothing in a file can run. Scalars
follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): `1e-6` is a number; `yes`,
`no`, `on` and `off` are text. Refused, each with its line: duplicate keys, anchors, aliases, merge keys,
tags, several documents, keys that are not text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MAX_BYTES: Final = 64 * 1024
"""The largest file that is read. PyYAML scans about 150 KiB/s in the worst case; real files have 2 KiB."""
MAX_DEPTH: Final = 8
MAX_KEYS: Final = 1000
MAX_ITEMS: Final = 1000
"""Of a list."""

_ITEM: Final = "[]"  # an item of a list, in the path of a value

REFUSED: Final = object()
"""Stands where a value was refused; its fault is already in the document's list."""

# A longer number is no setting, and Python refuses to print integers of more than 4300 digits.
_MAX_NUMBER: Final = 40
_CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Document:
    """What a text holds.

    `value`: the root as plain Python. `lines`: the 1-based line of each key, by its path from the root.
    `faults`: (line, what is wrong and what to do).
    """

    value: Any = REFUSED
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)


class _UnreadableError(Exception):
    """Reading cannot go on behind this line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def read(text: str) -> Document:
    """Read the one document in `text`. Never raises: what is wrong stands in `faults`.

    A text without a document (empty, or only comments) has the value None; one that cannot be read to its end
    has the value REFUSED.
    """
    document = Document()
    scanner: yaml.SafeLoader | None = None
    try:
        scanner = yaml.SafeLoader(text)
        events = iter(scanner.get_event, None)
        starts = (event for event in events if isinstance(event, yaml.DocumentStartEvent))
        value = None if next(starts, None) is None else _build(next(events), events, (), document)
        if (second := next(starts, None)) is not None:
            raise _UnreadableError(_line(second), "a second document starts here: write one, without `---`")
        document.value = value
    except _UnreadableError as error:
        document.faults.append((error.line, str(error)))
    except yaml.MarkedYAMLError as error:
        document.faults.append(_syntax(error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = ord(text[error.position])
        document.faults.append((line, f"not valid YAML: the character U+{code:04X} is not allowed"))
    except (ValueError, OverflowError):  # PyYAML passes an escape such as "\UFFFFFFFF" to chr() unchecked
        line = scanner.line + 1 if scanner else 1
        document.faults.append((line, "not valid YAML: an escape or a directive holds a number out of range"))
    return document


def resolve(text: str) -> Any:
    """The value of a plain (unquoted) scalar by the YAML 1.2 core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if len(text) > _MAX_NUMBER:
        return text
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _build(event: yaml.Event, events: Iterator[yaml.Event], path: tuple[str, ...], document: Document) -> Any:
    """The value that starts with `event`; takes its events off `events`."""
    if len(path) > MAX_DEPTH:
        raise _UnreadableError(_line(event), f"nested deeper than {MAX_DEPTH} levels")
    if len(document.lines) + len(document.faults) > MAX_KEYS:
        raise _UnreadableError(_line(event), f"more than {MAX_KEYS} keys: this is no configuration file")
    refusal = _refusal(event)
    if refusal is not None:
        document.faults.append((_line(event), _at(path, refusal)))
    value: Any = REFUSED
    if isinstance(event, yaml.ScalarEvent):
        value = event.value if event.style else resolve(event.value)
    elif isinstance(event, yaml.SequenceStartEvent):
        value = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            if len(value) == MAX_ITEMS:
                raise _UnreadableError(
                    _line(item), f"a list of more than {MAX_ITEMS} items: this is no configuration file"
                )
            value.append(_build(item, events, (*path, _ITEM), document))
        if any(item is REFUSED for item in value):
            value = REFUSED
    elif isinstance(event, yaml.MappingStartEvent):
        value = _mapping(events, path, document)
    return value if refusal is None else REFUSED


def _mapping(events: Iterator[yaml.Event], path: tuple[str, ...], document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first_lines: dict[str, int] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        line = _line(event)
        key = _key(event, events, path, document)
        value = _build(next(events), events, (*path, "" if key is None else key), document)
        if key is None:
            continue
        if key in values:
            twice = f"given twice, first in line {first_lines[key]}: remove one"
            document.faults.append((line, _at((*path, key), twice)))
            continue
        values[key] = value
        first_lines[key] = document.lines[*path, key] = line
    return values


def _key(event: yaml.Event, events: Iterator[yaml.Event], path: tuple[str, ...], document: Document) -> str | None:
    """The key that `event` starts, as text; None where it is refused."""
    if not isinstance(event, yaml.ScalarEvent):
        count = len(document.faults)
        _build(event, events, (*path, ""), document)
        if len(document.faults) == count:
            document.faults.append((_line(event), _at(path, "a key must be a name, not a list or a mapping")))
        return None
    refusal = _refusal(event)
    if refusal is None and event.value == "<<" and not event.style:
        refusal = "merge keys (<<) are not accepted: write the settings out"
    if refusal is None:
        return str(event.value)
    document.faults.append((_line(event), _at(path, refusal)))
    return None


def _refusal(event: yaml.Event) -> str | None:
    if isinstance(event, yaml.AliasEvent):
        return "aliases (*name) are not accepted: write the value out, or quote text that starts with *"
    if getattr(event, "anchor", None) is not None:
        return "anchors (&name) are not accepted: remove it, or quote text that starts with &"
    tag = getattr(event, "tag", None)
    if tag is not None:
        name = tag.replace("tag:yaml.org,2002:", "!!", 1)
        return f"tags ({name[:60]}) are not accepted: write the plain value, or quote text that starts with !"
    return None


def _syntax(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    unfinished_key = error.context == "while scanning a simple key"  # the problem lies where the key starts
    mark = error.context_mark if unfinished_key else error.problem_mark or error.context_mark
    line = 1 if mark is None else int(mark.line) + 1
    problem = " ".join(part for part in (error.context, error.problem) if part)
    advice = ""
    if "'\\t'" in problem:
        advice = ": indent with spaces, not with tabs"
    elif "mapping values are not allowed" in problem:
        advice = ": check the indentation, and quote a value that holds `: `"
    elif unfinished_key:
        advice = ": write `name: value`"
    elif "cannot start any token" in problem:
        advice = ": quote a value that starts with this character"
    return line, f"not valid YAML: {problem}{advice}"


def _at(path: tuple[str, ...], message: str) -> str:
    """`message` after the full key that it is about."""
    key = ".".join(part for part in path if part and part != _ITEM)
    return f"{shown_key(key)}: {message}" if key else message


def shown_key(key: str) -> str:
    """`key` as it is, or quoted and cut off where it would garble a message."""
    return key if key.isprintable() and 0 < len(key) <= 80 else ascii(key[:80])


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else int(event.start_mark.line) + 1
