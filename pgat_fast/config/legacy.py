"""Define the names of earlier configuration files: those with a current meaning, and those that are ignored."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pgat_fast.config.schema import ModelConfig


@dataclass(frozen=True)
class Renamed:
    """An old name of a setting.

    Args:
        setting: the full key of the setting.
        values: the current value for each old one, if they differ; other values are errors.
    """

    setting: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class PathPart:
    """An old name of a part of `data.path`."""

    setting: str = "data.path"


@dataclass(frozen=True)
class Fixed:
    """An old name with a single accepted value, and what to do about another one."""

    value: Any
    advice: str


@dataclass(frozen=True)
class SameAs:
    """An old name whose value must agree with a current setting."""

    setting: str
    value: Callable[[ModelConfig], Any]


OldName = Renamed | PathPart | Fixed | SameAs

OLD_NAMES: Final[Mapping[str, OldName]] = {
    "model": Fixed("Celestial_Enhanced_PGAT", "it is the only model here; a section `model:` contains its settings"),
    "data": Fixed("custom", "a CSV of your own is the only kind of data; a section `data:` contains its settings"),
    "model_id": Renamed("run.name"),
    "root_path": PathPart(),
    "data_path": PathPart(),
    "target": Renamed("data.targets"),
    "use_gpu": Renamed("run.device", {True: "auto", False: "cpu"}),
    "train_epochs": Renamed("training.epochs"),
    "lradj": Renamed("training.lr_schedule"),
    # With its section too: the stored configurations of earlier runs have sections.
    **dict.fromkeys(
        ("use_amp", "mixed_precision", "training.mixed_precision"),
        Renamed(
            "run.precision",
            {True: "auto", False: "highest", "auto": "auto", "off": "highest", "bf16": "bf16", "fp16": "fp16"},
        ),
    ),
    "checkpoints": Renamed("run.output"),
    "checkpoint_interval": Renamed("run.checkpoint_epochs"),
    "save_best_only": Renamed("run.keep_checkpoints", {True: 1, False: 3}),
    "use_efficient_covariate_interaction": Renamed("model.graph_processing", {True: "partitioned", False: "attention"}),
    **dict.fromkeys(
        ("strategy", "run.strategy"),
        Fixed("ddp", "weights are no longer spread over processes; write ddp, or remove the line"),
    ),
    "aggregate_waves_to_celestial": SameAs("model.use_celestial_graph", lambda m: m.use_celestial_graph),
    "num_input_waves": SameAs("model.enc_in", lambda m: m.enc_in),
    "target_wave_indices": SameAs("model.c_out", lambda m: list(range(m.c_out))),
}

IGNORED: Final = frozenset((
    # A run has one name and one seed.
    "task_name", "is_training", "des", "itr", "extra_tag", "train_only", "do_predict",
    # Columns are named, marks are always encoded, scaling is fixed.
    "features", "embed", "timeenc", "inverse", "detail_freq", "seasonal_patterns", "percent", "augmentation_ratio",
    # Checkpoints are always written.
    "save_checkpoints",
    # Devices and processes are decided when a run starts.
    "gpu", "gpu_type", "use_multi_gpu", "devices", "device_ids", "num_workers",
    # The model decides which loss it needs.
    "loss", "reg_loss_weight", "use_dtw",
    # Parts of other models.
    "d_ff", "factor", "activation", "output_attention", "attn", "mix", "padding", "distil", "moving_avg",
    "bucket_size", "n_hashes", "expand", "d_conv", "top_k", "num_kernels", "individual", "patch_len", "stride",
    "channel_independence", "decomp_method", "use_norm", "seg_len", "p_hidden_dims", "p_hidden_layers",
    "down_sampling_layers", "down_sampling_window", "down_sampling_method", "mask_rate", "anomaly_ratio",
))  # fmt: skip
"""Names in existing files that have no effect; the loader warns about them."""


def migrate(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the sections of a configuration that an earlier version stored, with current names and values.

    Does not check values. Leaves out what is no section or has no current equivalent.
    """
    sections = {name: dict(settings) for name, settings in saved.items() if isinstance(settings, Mapping)}
    for name, old in OLD_NAMES.items():
        section, dot, key = name.partition(".")
        if not dot or not isinstance(old, Renamed) or key not in sections.get(section, {}):
            continue
        value = sections[section].pop(key)
        new_section, _, new_key = old.setting.partition(".")
        with suppress(KeyError):
            sections.setdefault(new_section, {}).setdefault(new_key, translate(old, value))
    return sections


def translate(old: Renamed, value: Any) -> Any:
    """Return the current value for the old `value`. Raises KeyError if there is none."""
    if old.values is None:
        return value
    for old_value, new_value in old.values.items():
        if type(value) is type(old_value) and value == old_value:
            return new_value
    raise KeyError(value)
