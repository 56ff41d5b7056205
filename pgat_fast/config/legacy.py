"""Names of earlier configuration files: what each means among the present settings.

One table of the names that mean something, one set of those that mean nothing here.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pgat_fast.config.schema import ModelConfig


@dataclass(frozen=True)
class Renamed:
    """The old name of a present setting.

    `setting`: its full key. `values`: the present value of each old one, where they differ; other values are
    errors, and `unsupported` says why.
    """

    setting: str
    values: Mapping[Any, Any] | None = None
    unsupported: str = ""


@dataclass(frozen=True)
class PathPart:
    """A part of `data.path`."""

    setting: str = "data.path"


@dataclass(frozen=True)
class Fixed:
    """A name that may say only what is the case anyway: the one value, and what to do about another one."""

    value: Any
    advice: str


@dataclass(frozen=True)
class SameAs:
    """A name whose value follows from a present setting, and must not contradict it."""

    setting: str
    value: Callable[[ModelConfig], Any]


OldName = Renamed | PathPart | Fixed | SameAs

OLD_NAMES: Final[Mapping[str, OldName]] = {
    "model": Fixed("Celestial_Enhanced_PGAT", "it is the only model here; a section `model:` holds its settings"),
    "data": Fixed("custom", "a CSV of your own is the only kind of data; a section `data:` holds its settings"),
    "model_id": Renamed("run.name"),
    "root_path": PathPart(),
    "data_path": PathPart(),
    "target": Renamed("data.targets"),
    "use_gpu": Renamed("run.device", {True: "auto", False: "cpu"}),
    "train_epochs": Renamed("training.epochs"),
    "lradj": Renamed(
        "training.lr_schedule",
        {name: name for name in ("warmup_cosine", "cosine", "step", "plateau", "constant")},
        "the numbered schedules of other trainers (type1, type2) are not supported",
    ),
    # With its section too: the files of earlier runs, from which they go on, have sections.
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

IGNORED: Final = frozenset(
    (
        # How a run is labelled or repeated: a run has one name, and one seed.
        *("task_name", "is_training", "des", "itr", "extra_tag", "train_only", "do_predict"),
        # Which columns, marks and scales: the columns are named, marks are always encoded, scaling is fixed.
        *(
            "features",
            "embed",
            "timeenc",
            "inverse",
            "detail_freq",
            "seasonal_patterns",
            "percent",
            "augmentation_ratio",
        ),
        # Whether checkpoints are written: they always are.
        "save_checkpoints",
        # Which machine, how many processes: decided when a run starts.
        *(
            "gpu",
            "gpu_type",
            "use_multi_gpu",
            "devices",
            "device_ids",
            "num_workers",
        ),
        # Losses: the model decides which one it needs.
        *("loss", "reg_loss_weight", "use_dtw"),
        # Parts of other models of the same code bases.
        *(
            "d_ff",
            "factor",
            "activation",
            "output_attention",
            "attn",
            "mix",
            "padding",
            "distil",
            "moving_avg",
        ),
        *(
            "bucket_size",
            "n_hashes",
            "expand",
            "d_conv",
            "top_k",
            "num_kernels",
            "individual",
            "patch_len",
            "stride",
        ),
        *("channel_independence", "decomp_method", "use_norm", "seg_len", "p_hidden_dims", "p_hidden_layers"),
        *(
            "down_sampling_layers",
            "down_sampling_window",
            "down_sampling_method",
            "mask_rate",
            "anomaly_ratio",
        ),
    )
)
"""Names that existing files carry and that nothing here reads; the loader warns of them."""


def in_present_terms(saved: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of `saved`, a configuration that an earlier version stored, with what has moved where it is now.

    Nothing is checked; what is no section, or has no present equivalent, is left out.
    """
    sections = {name: dict(settings) for name, settings in saved.items() if isinstance(settings, Mapping)}
    for name, old in OLD_NAMES.items():
        section, dot, key = name.partition(".")
        if not dot or not isinstance(old, Renamed) or key not in sections.get(section, {}):
            continue
        value = sections[section].pop(key)
        home, _, present = old.setting.partition(".")
        with suppress(KeyError):
            sections.setdefault(home, {}).setdefault(present, translate(old, value))
    return sections


def translate(old: Renamed, value: Any) -> Any:
    """The present value for the old `value`. Raises KeyError for one that has no present equivalent."""
    if old.values is None:
        return value
    for known, present in old.values.items():
        if type(value) is type(known) and value == known:
            return present
    raise KeyError(value)
