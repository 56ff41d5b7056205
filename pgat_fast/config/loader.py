"""From a file, a mapping and overrides to a checked `Config`, with every fault named at once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pgat_fast.config.dump import config_to_dict
from pgat_fast.config.legacy import IGNORED, OLD_NAMES, Fixed, Renamed, SameAs, translate
from pgat_fast.config.messages import SECTION_OF, SECTIONS, broken_rules, shown, unknown_key
from pgat_fast.config.schema import COMPATIBILITY, Broken, Config, ModelConfig
from pgat_fast.config.sources import Fault, Given, file_settings, listed, mapping_settings, override_settings
from pgat_fast.config.yaml_reader import REFUSED
from pgat_fast.errors import ConfigError

logger: Final = logging.getLogger("pgat_fast.config")

# `data.path` can be given whole or in two parts, not both ways at once.
_EXCLUDES: Final[Mapping[str, tuple[str, ...]]] = {
    "data.path": ("root_path", "data_path"),
    "root_path": ("data.path",),
    "data_path": ("data.path",),
}


@dataclass
class _Gathered:
    """What has been given.

    `chosen`: the setting that counts, by its present full key; old names that stand for no single setting, by
    themselves. `ignored`: names that mean nothing here.
    """

    chosen: dict[str, Given] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def load_config(source: str | Path | Mapping[str, Any] | Config | None = None, overrides: Sequence[str] = ()) -> Config:
    """Build the configuration that `source`, changed by `overrides`, describes; the rest has its default.

    `source`: the path of a YAML file (UTF-8, at most 64 KiB), a mapping, a `Config`, or None. Settings stand
    in sections (`training: {epochs: 5}`), flat (`epochs: 5`) or under the names of earlier files
    (`train_epochs: 5`). `overrides`: texts `key=value`, the key in any of these forms (`training.epochs=5`),
    the value a YAML scalar or `[list]`; later ones win. Overriding `compatibility` also resets what it
    decides (`phase_edges`, `feature_map`, `calendar_marks`), unless these have overrides of their own.

    Names that mean nothing here are named in one warning of the logger `pgat_fast.config`.

    Raises ConfigError with a line for each fault: the file and line (or the override), the key, the value
    found and what was expected. Rules between settings are checked once every setting of their section is
    right by itself.
    """
    gathered = _Gathered()
    _gather_source(source, gathered)
    _gather_overrides(overrides, gathered)
    _join_path(gathered)
    config = _build(gathered)
    if gathered.ignored:
        name = source if isinstance(source, str | Path) else "configuration"
        logger.warning("%s: nothing here reads %s: ignored", name, ", ".join(gathered.ignored))
    model = config.model
    if model.embed_dim != model.d_model:
        logger.info(
            "d_model %d raised to %d, the next multiple of lcm(%d nodes, %d heads)",
            *(model.d_model, model.embed_dim, model.nodes, model.n_heads),
        )
    return config


def _gather_source(source: object, gathered: _Gathered) -> None:
    if isinstance(source, Config):
        source = config_to_dict(source)
    if isinstance(source, str | Path):
        settings, gathered.faults = file_settings(source)
    elif source is None or isinstance(source, Mapping):
        settings, gathered.faults = mapping_settings(source or {})
    else:
        kind = type(source).__name__
        raise ConfigError(f"a configuration comes from a path, a mapping or a Config, not from {kind}")
    for key, given in _meaningful(settings, gathered):
        rivals = [name for name in (key, *_EXCLUDES.get(key, ())) if name in gathered.chosen]
        if rivals:
            first = gathered.chosen[rivals[0]]
            place = f" ({first.where})" if first.where else ""
            message = f"given both as {first.key}{place} and as {given.key}: remove one"
            gathered.faults.append(given.fault(message, "data.path" if key in _EXCLUDES else key))
        else:
            gathered.chosen[key] = given


def _gather_overrides(overrides: Sequence[str], gathered: _Gathered) -> None:
    settings, faults = override_settings(overrides)
    gathered.faults += faults
    meaningful = _meaningful(settings, gathered)
    if any(key == "model.compatibility" for key, _ in meaningful):
        for name in COMPATIBILITY:
            gathered.chosen.pop(f"model.{name}", None)
    for key, given in meaningful:
        for rival in _EXCLUDES.get(key, ()):
            gathered.chosen.pop(rival, None)
        gathered.chosen[key] = given


def _meaningful(settings: Iterable[Given], gathered: _Gathered) -> list[tuple[str, Given]]:
    """The `settings` that mean something, each with its key in `chosen`; `gathered` notes the others."""
    meaningful = []
    for given in settings:
        key = given.key
        section, dot, name = key.partition(".")
        old = OLD_NAMES.get(key)
        if key in SECTION_OF:
            meaningful.append((f"{SECTION_OF[key]}.{key}", given))
        elif dot and SECTION_OF.get(name) == section:
            meaningful.append((key, given))
        elif old is not None:
            meaningful.append((old.setting if isinstance(old, Renamed) else key, given))
        elif key in IGNORED:
            gathered.ignored[key] = None
        elif key in SECTIONS:
            gathered.faults.append(given.fault(f"expected a section of settings, found {shown(given.value)}"))
        else:
            gathered.faults.append(given.fault(unknown_key(key, given.value)))
    return meaningful


def _join_path(gathered: _Gathered) -> None:
    """Turn `root_path` and `data_path` into `data.path`."""
    root, file = (gathered.chosen.pop(name, None) for name in ("root_path", "data_path"))
    whole = file or root
    if whole is None:
        return
    joined: object = REFUSED
    for part in (root, file):
        if part is not None and not isinstance(part.value, str) and part.value is not REFUSED:
            gathered.faults.append(part.fault(f"found {shown(part.value)}, expected text", "data.path"))
    if file is None:
        gathered.faults.append(whole.fault("data_path is missing: name the file in this folder", "data.path"))
    elif root is None:
        joined = file.value if isinstance(file.value, str) else REFUSED
    elif isinstance(root.value, str) and isinstance(file.value, str):
        joined = (Path(root.value) / file.value).as_posix()
    gathered.chosen["data.path"] = replace(whole, value=joined)


def _build(gathered: _Gathered) -> Config:
    """The configuration that `gathered` gives. Raises ConfigError with all faults, found here or before."""
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, given in gathered.chosen.items():
        section, dot, name = key.partition(".")
        if dot and key not in OLD_NAMES:
            values[section][name] = _present_value(key, given, gathered)
    sections: dict[str, Any] = {}
    for section, schema in SECTIONS.items():
        try:
            sections[section] = schema.model_validate(values[section])
        except ValidationError as error:
            _report(broken_rules(section, values[section], error), gathered)
    _check_old_names(sections.get("model"), gathered)
    config = None
    if "data" in sections and "model" in sections:
        try:
            config = Config.model_validate(sections)
        except ValidationError as error:
            _report(broken_rules("", {}, error), gathered)
    if config is None or gathered.faults:
        raise ConfigError(listed(gathered.faults))
    return config


def _present_value(key: str, given: Given, gathered: _Gathered) -> Any:
    """The value of `given` in today's terms; REFUSED, which no setting accepts, where there is none."""
    old = OLD_NAMES.get(given.key)
    if not isinstance(old, Renamed) or given.value is REFUSED:
        return given.value
    try:
        return translate(old, given.value)
    except KeyError:
        known = " or ".join(shown(value) for value in old.values or ())
        reason = f": {old.unsupported}" if old.unsupported else ""
        gathered.faults.append(given.fault(f"found {shown(given.value)}, expected {known}{reason}", key))
        return REFUSED


def _check_old_names(model: ModelConfig | None, gathered: _Gathered) -> None:
    """Refuse old names that contradict what is the case; `model` is None where it is not known."""
    for name, given in gathered.chosen.items():
        old = OLD_NAMES.get(name)
        if given.value is REFUSED:
            continue
        found = f"found {shown(given.value)}, expected"
        if isinstance(old, Fixed) and given.value != old.value:
            gathered.faults.append(given.fault(f"{found} {old.value}: {old.advice}"))
        elif isinstance(old, SameAs) and model is not None and given.value != (value := old.value(model)):
            rule = f"as {old.setting} says; another value is not supported"
            gathered.faults.append(given.fault(f"{found} {shown(value)}, {rule}"))


def _report(rules: Iterable[Broken], gathered: _Gathered) -> None:
    """Add `rules` to the faults, each at the first of its settings that was given."""
    for rule in rules:
        key = next((key for key in rule.settings if key in gathered.chosen), rule.settings[0])
        given = gathered.chosen.get(key, Given(key, None))
        gathered.faults.append(given.fault(rule.message, key))
