"""Write a configuration as plain Python, and as YAML that loads back to an equal one."""

import re
from typing import Any, Final

from pgat_fast.config.schema import Config
from pgat_fast.config.yaml_reader import SCALARS

_PLAIN: Final = re.compile(r"[A-Za-z_./][\w./ -]*(?<! )", re.ASCII)
# The last words are booleans for YAML 1.1 readers.
_NOT_TEXT: Final = re.compile("|".join([*SCALARS.values(), "(?i:y|n|yes|no|on|off|true|false)"]))
_COMMENT_COLUMN: Final = 46
_WIDTH: Final = 110


def config_to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return `config` as a dict of sections, each a dict of settings, in the order of the schema."""
    return config.model_dump()


def dump_config(config: Config, describe: bool = False) -> str:
    """Return `config` as YAML with every setting in its section, in the order of the schema.

    `load_config` reads it back to an equal configuration. If `describe` is true, a comment describes each setting.
    """
    lines: list[str] = []
    for section in type(config).model_fields:
        if lines:
            lines.append("")
        lines.append(f"{section}:")
        settings = getattr(config, section)
        for name, field in type(settings).model_fields.items():
            first, *remaining = _format_setting(name, getattr(settings, name))
            if describe:
                first = f"{first:<{_COMMENT_COLUMN}}  # {field.description}"
            lines += [f"  {line}" for line in (first, *remaining)]
    return "\n".join(lines) + "\n"


def _format_setting(name: str, value: Any) -> list[str]:
    """Return the lines of one setting: a list that does not fit on one line has an item a line."""
    if not isinstance(value, list):
        return [f"{name}: {_format_scalar(value)}"]
    items = [_format_scalar(item) for item in value]
    line = f"{name}: [{', '.join(items)}]"
    return [line] if len(line) < _WIDTH else [f"{name}:", *(f"  - {item}" for item in items)]


def _format_scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _format_float(value)
    return _format_text(value) if isinstance(value, str) else str(value)


def _format_float(value: float) -> str:
    """Return the shortest digits that read back as `value`, with the point that YAML 1.1 needs: `1.0e-06`."""
    mantissa, e, exponent = repr(value).partition("e")
    point = ".0" if e and "." not in mantissa else ""
    return f"{mantissa}{point}{e}{exponent}"


def _format_text(value: str) -> str:
    if _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return value
    return '"' + "".join(_escape(character) for character in value) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
