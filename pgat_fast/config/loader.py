"""Build a checked `Config` from a file, a mapping and overrides; list all errors at once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from pgat_fast.config.dump import config_to_dict
from pgat_fast.config.errors import INVALID, Problem, format_problems, format_value, invalid_values, unknown_key
from pgat_fast.config.legacy import IGNORED, OLD_NAMES, Fixed, Renamed, SameAs, translate
from pgat_fast.config.schema import COMPATIBILITY, SECTION_OF, SECTIONS, Config, Conflict, ModelConfig
from pgat_fast.config.sources import Setting, read_file, read_mapping, read_overrides
from pgat_fast.errors import ConfigError

logger: Final = logging.getLogger("pgat_fast.config")

# `data.path` can be given whole or in two parts, not both ways at once.
_EXCLUDES: Final[Mapping[str, tuple[str, ...]]] = {
    "data.path": ("root_path", "data_path"),
    "root_path": ("data.path",),
    "data_path": ("data.path",),
}


@dataclass
class _Settings:
    """The settings that were given.

    Attributes:
        chosen: the settings in effect, by their current full keys; old names without a current key by these names.
        ignored: the names without effect.
        problems: the errors.
    """

    chosen: dict[str, Setting] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def load_config(source: str | Path | Mapping[str, Any] | Config | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in `source`, changed by `overrides`; other settings have their defaults.

    Names without effect are listed in one warning of the logger `pgat_fast.config`.

    Args:
        source: the path of a YAML file (UTF-8, at most 64 KiB), a mapping, a `Config`, or None. Settings stand in
            sections (`training: {epochs: 5}`), flat (`epochs: 5`) or under the names of earlier files
            (`train_epochs: 5`).
        overrides: texts `key=value`, the key in any of these forms (`training.epochs=5`), the value a YAML scalar or
            `[list]`; later ones win. Overriding `compatibility` also resets what it decides (`phase_edges`,
            `feature_map`, `calendar_marks`), unless these have overrides of their own.

    Raises:
        ConfigError: with a line for each error: the file and line (or the override), the key, the value found and what
            was expected. A file that is not accepted as YAML is refused at the first such error. Rules between
            settings are checked once every setting of their section is right by itself.
    """
    settings = _Settings()
    _add_source(settings, source)
    _add_overrides(settings, overrides)
    _join_path(settings)
    config = _build(settings)
    if settings.ignored:
        name = source if isinstance(source, str | Path) else "configuration"
        logger.warning("%s: ignored, because these names have no effect: %s", name, ", ".join(settings.ignored))
    model = config.model
    if model.embed_dim != model.d_model:
        logger.info(
            "d_model %d raised to %d, the next multiple of lcm(%d nodes, %d heads)",
            *(model.d_model, model.embed_dim, model.nodes, model.n_heads),
        )
    return config


def with_precision_of(stored: Config, config: Config) -> Config:
    """Return `config`, with the precision of `stored` if `run.precision` is `auto`.

    So sweeps and backtests that began with a precision, such as the default of earlier versions, continue with it.
    """
    if config.run.precision != "auto":
        return config
    run = config.run.model_copy(update={"precision": stored.run.precision})
    return config.model_copy(update={"run": run})


def _add_source(settings: _Settings, source: object) -> None:
    if isinstance(source, Config):
        source = config_to_dict(source)
    if isinstance(source, str | Path):
        source_settings = read_file(source)
    elif source is None or isinstance(source, Mapping):
        source_settings = read_mapping(source or {})
    else:
        kind = type(source).__name__
        raise ConfigError(f"a configuration comes from a path, a mapping or a Config, not from {kind}")
    for key, setting in _resolve_keys(settings, source_settings):
        duplicates = [name for name in (key, *_EXCLUDES.get(key, ())) if name in settings.chosen]
        if duplicates:
            first = settings.chosen[duplicates[0]]
            location = f" ({first.source})" if first.source else ""
            message = f"given both as {first.key}{location} and as {setting.key}: remove one"
            settings.problems.append(setting.problem(message, "data.path" if key in _EXCLUDES else key))
        else:
            settings.chosen[key] = setting


def _add_overrides(settings: _Settings, overrides: Sequence[str]) -> None:
    override_settings, problems = read_overrides(overrides)
    settings.problems += problems
    resolved = _resolve_keys(settings, override_settings)
    if any(key == "model.compatibility" for key, _ in resolved):
        for name in COMPATIBILITY:
            settings.chosen.pop(f"model.{name}", None)
    for key, setting in resolved:
        for excluded in _EXCLUDES.get(key, ()):
            settings.chosen.pop(excluded, None)
        settings.chosen[key] = setting


def _resolve_keys(settings: _Settings, given: Iterable[Setting]) -> list[tuple[str, Setting]]:
    """Return the settings in `given` that have an effect, each with its key in `chosen`; record the others."""
    resolved = []
    for setting in given:
        key = setting.key
        section, dot, name = key.partition(".")
        old = OLD_NAMES.get(key)
        if key in SECTION_OF:
            resolved.append((f"{SECTION_OF[key]}.{key}", setting))
        elif dot and SECTION_OF.get(name) == section:
            resolved.append((key, setting))
        elif old is not None:
            resolved.append((old.setting if isinstance(old, Renamed) else key, setting))
        elif key in IGNORED:
            settings.ignored[key] = None
        elif key in SECTIONS:
            message = f"expected a section of settings, found {format_value(setting.value)}"
            settings.problems.append(setting.problem(message))
        else:
            settings.problems.append(setting.problem(unknown_key(key, setting.value)))
    return resolved


def _join_path(settings: _Settings) -> None:
    """Replace `root_path` and `data_path` by `data.path`."""
    parts = [settings.chosen.pop(name) for name in ("root_path", "data_path") if name in settings.chosen]
    if not parts:
        return
    path: object = INVALID
    invalid_parts = [part for part in parts if not isinstance(part.value, str)]
    for part in invalid_parts:
        message = f"found {format_value(part.value)}, expected text"
        settings.problems.append(part.problem(message, "data.path"))
    if parts[-1].key == "root_path":
        settings.problems.append(parts[-1].problem("data_path is missing: name the file in this folder", "data.path"))
    elif not invalid_parts:
        path = parts[0].value if len(parts) == 1 else Path(*(part.value for part in parts)).as_posix()
    settings.chosen["data.path"] = replace(parts[-1], value=path)


def _build(settings: _Settings) -> Config:
    """Return the configuration of `settings`. Raises ConfigError with all errors, earlier ones included."""
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, setting in settings.chosen.items():
        section, dot, name = key.partition(".")
        if dot and key not in OLD_NAMES:
            values[section][name] = _translate_value(settings, key, setting)
    sections: dict[str, Any] = {}
    for section, schema in SECTIONS.items():
        try:
            sections[section] = schema.model_validate(values[section])
        except ValidationError as error:
            _add_conflicts(settings, invalid_values(section, values[section], error))
    _check_old_names(settings, sections.get("model"))
    config = None
    if "data" in sections and "model" in sections:
        try:
            config = Config.model_validate(sections)
        except ValidationError as error:
            _add_conflicts(settings, invalid_values("", {}, error))
    if config is None or settings.problems:
        raise ConfigError(format_problems(settings.problems))
    return config


def _translate_value(settings: _Settings, key: str, setting: Setting) -> Any:
    """Return the current value for `setting`, which may have an old name; INVALID if there is none."""
    old = OLD_NAMES.get(setting.key)
    if not isinstance(old, Renamed):
        return setting.value
    try:
        return translate(old, setting.value)
    except KeyError:
        values = " or ".join(format_value(value) for value in old.values or ())
        message = f"found {format_value(setting.value)}, expected {values}"
        settings.problems.append(setting.problem(message, key))
        return INVALID


def _check_old_names(settings: _Settings, model: ModelConfig | None) -> None:
    """Refuse old names that contradict current settings; `model` is None if that section has errors."""
    for name, setting in settings.chosen.items():
        old = OLD_NAMES.get(name)
        prefix = f"found {format_value(setting.value)}, expected"
        if isinstance(old, Fixed) and setting.value != old.value:
            settings.problems.append(setting.problem(f"{prefix} {old.value}: {old.advice}"))
        elif isinstance(old, SameAs) and model is not None and setting.value != (value := old.value(model)):
            rule = f"which follows from {old.setting}; other values are not supported"
            settings.problems.append(setting.problem(f"{prefix} {format_value(value)}, {rule}"))


def _add_conflicts(settings: _Settings, conflicts: Iterable[Conflict]) -> None:
    """Add `conflicts` to the errors, each at the first of its settings that was given."""
    for conflict in conflicts:
        key = next((key for key in conflict.keys if key in settings.chosen), conflict.keys[0])
        setting = settings.chosen.get(key, Setting(key, None))
        settings.problems.append(setting.problem(conflict.message, key))
