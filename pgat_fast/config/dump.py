"""Write a configuration as plain Python, and as YAML that loads back to an equal one."""

import re
from typing import Any

import yaml

from pgat_fast.config.schema import Config
from pgat_fast.config.yaml_reader import ConfigLoader


class ConfigDumper(yaml.SafeDumper):
    """A SafeDumper that quotes text which readers of YAML 1.1 or 1.2 would not read as text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # indent the items of a list

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


ConfigDumper.add_representer(str, ConfigDumper.represent_text)
for tag, pattern in ConfigLoader.yaml_implicit_resolvers[None]:
    ConfigDumper.add_implicit_resolver(tag, pattern, None)
# Booleans in YAML 1.1, although not for PyYAML.
ConfigDumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]\Z"), None)


def config_to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return `config` as a dict of sections, each a dict of settings, in the order of the schema."""
    return config.model_dump()


def dump_config(config: Config, describe: bool = False, ascii_only: bool = False) -> str:
    """Return `config` as YAML with every setting in its section, in the order of the schema.

    `load_config` reads it back to an equal configuration. If `describe` is true, a comment describes each setting. If
    `ascii_only` is true, values are quoted and escaped where they contain other characters.
    """
    sections = []
    for section, settings in config:
        lines = [f"{section}:"]
        for name, field in type(settings).model_fields.items():
            setting = {name: getattr(settings, name)}
            text = yaml.dump(setting, Dumper=ConfigDumper, allow_unicode=not ascii_only, width=2**16)
            first, *items = text.splitlines()
            if describe:
                first = f"{first:<46}  # {' '.join((field.description or '').split())}"
            lines += [f"  {line}" for line in (first, *items)]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"
