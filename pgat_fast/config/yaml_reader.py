"""Read the YAML of configuration files: mappings, lists and scalars.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): `1e-6` is a number; `yes`,
`no`, `on` and `off` are text. Anchors, aliases, tags, merge keys, duplicate keys, keys that are not text and several
documents are refused.
"""

import re
from typing import Any, Final

import yaml

MAX_BYTES: Final = 64 * 1024
"""The largest file that is read. PyYAML scans about 150 KiB/s in the worst case; real files have 2 KiB."""
MAX_DEPTH: Final = 8
MAX_ITEMS: Final = 1000
"""The largest number of items of a list, and of keys in a file."""

# Longer numbers are text: no setting needs them, and Python refuses to print integers of more than 4300 digits.
_NUMBER: Final = r"(?=.{1,40}\Z)"
SCALARS: Final = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": rf"{_NUMBER}(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)",
    "float": rf"{_NUMBER}[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""The pattern of unquoted scalars that are not text, by type."""

_ADVICE: Final = {
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "check the indentation, and quote a value that holds `: `",
    "while scanning a simple key": "write `name: value`",
    "cannot start any token": "quote a value that starts with this character",
    "another document": "write one document, without `---`",
}
"""What to do about a syntax error, by a phrase of PyYAML's message."""


class YamlError(Exception):
    """Raised for text that is not accepted; `line` is the 1-based line of the error."""

    def __init__(self, message: str, line: int = 1) -> None:
        super().__init__(message)
        self.line = line


class ConfigLoader(yaml.SafeLoader):
    """A SafeLoader with the scalars of YAML 1.2 that refuses what no configuration file needs.

    `lines` holds the 1-based line of each key, by its path from the root.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[tuple[str, ...], int] = {}
        self._path: tuple[str, ...] = ()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the root, a key (`index` is None), a value (`index` is its key) or an item of a list."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # untyped in PyYAML
        parent_path, is_key = self._path, parent is not None and index is None
        if parent is not None:
            named = event if is_key else index
            self._path = (*parent_path, f"[{index}]" if isinstance(index, int) else getattr(named, "value", ""))
        self._check(event, is_key, item=index if isinstance(index, int) else 0)
        if is_key:
            self.lines[self._path] = event.start_mark.line + 1
            event.implicit = (False, True)  # text, whatever it looks like
        node = super().compose_node(parent, index)
        self._path = parent_path
        return node

    def _check(self, event: Any, is_key: bool, item: int) -> None:
        """Raise YamlError if the node that starts with `event` is not accepted."""
        tag = str(getattr(event, "tag", None)).replace("tag:yaml.org,2002:", "!!")[:60]
        first_line = self.lines.get(self._path)
        for refused, problem in (
            (item >= MAX_ITEMS, f"a list of more than {MAX_ITEMS} items: this is no configuration file"),
            (len(self._path) > MAX_DEPTH, f"nested deeper than {MAX_DEPTH} levels: this is no configuration file"),
            (len(self.lines) > MAX_ITEMS, f"more than {MAX_ITEMS} keys: this is no configuration file"),
            (isinstance(event, yaml.AliasEvent), "aliases (*name) are not accepted: write the value, or quote it"),
            (event.anchor, "anchors (&name) are not accepted: remove the anchor, or quote the value"),
            (tag != "None", f"tags ({tag}) are not accepted: remove the tag, or quote the value"),
            (is_key and not isinstance(event, yaml.ScalarEvent), "a key must be a name, not a list or a mapping"),
            (is_key and self._path[-1] == "<<", "merge keys (<<) are not accepted: write the settings out"),
            (is_key and first_line, f"given twice, first in line {first_line}: remove one"),
        ):
            if refused:
                key = ".".join(part for part in self._path if part and not part.startswith("["))
                raise YamlError(f"{format_key(key)}: {problem}" if key else problem, event.start_mark.line + 1)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


ConfigLoader.yaml_implicit_resolvers = {}
for name, pattern in SCALARS.items():
    ConfigLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), None)
ConfigLoader.add_constructor("tag:yaml.org,2002:int", ConfigLoader.construct_int)


def read(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    """Return the document in `text` as plain Python, None if there is none, and the line of each key by its path.

    Raises YamlError.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"longer than {MAX_BYTES} characters: write a shorter value")
    try:
        loader = ConfigLoader(text)
    except yaml.reader.ReaderError as error:
        message = f"not UTF-8 text, or a control character: {text[error.position]!a}: save the file as UTF-8 without it"
        raise YamlError(message, text.count("\n", 0, error.position) + 1) from None
    try:
        return loader.get_single_data(), loader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark if error.context == "while scanning a simple key" else error.problem_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        advice = next((f": {advice}" for phrase, advice in _ADVICE.items() if phrase in problem), "")
        raise YamlError(f"not valid YAML: {problem}{advice}", mark.line + 1 if mark else 1) from None
    except (ValueError, OverflowError):  # PyYAML passes an escape such as "\UFFFFFFFF" to chr() unchecked
        message = "not valid YAML: an escape or a directive holds a number out of range"
        raise YamlError(message, loader.line + 1) from None


def format_key(key: str) -> str:
    """Return `key`, quoted and cut off if it would garble a message."""
    return key if key.isprintable() and 0 < len(key) <= 80 else ascii(key[:80])
