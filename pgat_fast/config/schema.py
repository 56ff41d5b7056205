"""Define every setting: its type, its default and its limits.

A section holds the settings of one part of the package. No setting name occurs in two sections, so that files may be
flat.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pgat_fast.data.columns import BODIES, COLUMNS


def _number(value: Any) -> Any:
    """Convert a number that arrives as text: YAML 1.1 readers take `1e-6` for a string."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            try:
                return float(value)
            except ValueError:
                return value
    return value


def _on_off(value: Any) -> Any:
    """Convert a boolean to `on` or `off`: YAML 1.1 readers take these words for booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _off(value: Any) -> Any:
    """Convert `false` to `off`: YAML 1.1 readers take this word for a boolean."""
    return "off" if value is False else value


def _in_64_bits(value: int) -> int:
    if abs(value) >= 2**63:
        raise ValueError("it does not fit into 64 bits")
    return value


def _names(value: Any) -> Any:
    """Convert a comma list (`a,b`) to a list of names."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value


def _distinct(names: list[str]) -> list[str]:
    seen: set[str] = set()
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"name {position + 1} is empty")
        if name in seen:
            raise ValueError(f"{name!r} is named twice")
        seen.add(name)
    return names


def _file_name(path: str) -> str:
    if "\0" in path:
        raise ValueError("no file name holds a NUL character")
    return path


class Conflict(NamedTuple):
    """Settings that contradict each other: their full keys, and what to do."""

    keys: tuple[str, ...]
    message: str


def _raise_conflicts(conflicts: Iterable[Conflict]) -> None:
    """Raise `conflicts` as one validation error, whose context holds them."""
    conflicts = list(conflicts)
    if conflicts:
        text = "; ".join(f"{conflict.keys[0]}: {conflict.message}" for conflict in conflicts)
        raise PydanticCustomError("conflicts", "{text}", {"text": text, "conflicts": conflicts})


BODY_CHANNELS = 32
"""C, the number of features of a body."""

COMPATIBILITY = {
    "phase_edges": ("computed", "zero"),
    "feature_map": ("named", "positional"),
    "calendar_marks": ("fraction", "integer"),
}
"""The defaults of these settings for `compatibility: corrected` and `compatibility: original`."""

Int = Annotated[int, BeforeValidator(_number), AfterValidator(_in_64_bits)]
Count = Annotated[Int, Field(ge=1)]
Few = Annotated[Int, Field(ge=1, le=1000)]
Columns = Annotated[Int, Field(ge=1, le=100_000)]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Float, Field(gt=0)]
Names = Annotated[list[str], BeforeValidator(_names), Field(min_length=1), AfterValidator(_distinct)]
LogLevel = Literal["debug", "info", "warning", "off"]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_file_name)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are not converted, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class DataConfig(Section):
    """Which file, which columns, which rows."""

    path: PathText = Field(
        default="data/prepared_financial_data.csv", description="the CSV that `pgat-fast data build` writes"
    )
    inputs: Names | None = Field(
        default=None,
        description="input columns; the 118 by default, all numeric ones without the celestial graph",
    )
    targets: Names | None = Field(default=None, description="target columns; the first c_out inputs by default")
    rows: Count | None = Field(default=None, description="use only the last so many rows of the file")
    skip_last: Annotated[Int, Field(ge=0)] = Field(
        default=0, description="leave out so many rows at the end of the file, as a backtest does"
    )
    target_kind: Literal["returns", "levels"] = Field(
        default="returns", description="targets are log(price / previous close), or log(price)"
    )
    base_price: Positive | None = Field(
        default=None,
        description="close before the file's first row; null: as `data build` noted beside the file, else 1",
    )
    trading_days: Literal["auto", "nyse", "weekdays", "daily"] = Field(
        default="auto", description="days that a forecast of the future is for; auto: as the dates of the file suggest"
    )
    validation_length: Count = Field(default=50, description="rows of the validation split")
    test_length: Count = Field(default=50, description="rows of the test split")
    decoder_future: Literal["zeros", "known"] = Field(
        default="zeros",
        description="decoder input over the forecast days: zeros, or the sky and calendar known ahead",
    )


class ModelConfig(Section):
    """The architecture: which function of the inputs is computed, with which parameters."""

    seq_len: Annotated[Int, Field(ge=1, le=5000)] = Field(default=250, description="S, input days")
    label_len: Annotated[Int, Field(ge=0)] = Field(default=125, description="L, days of history that the decoder sees")
    pred_len: Count = Field(default=10, description="P, forecast days")
    enc_in: Columns = Field(default=118, description="F, input features")
    dec_in: Columns = Field(default=118, description="decoder input features")
    c_out: Columns = Field(default=4, description="number of targets")
    d_model: Annotated[Int, Field(ge=1, le=65_536)] = Field(
        default=130, description="width; raised to a multiple of lcm(nodes, n_heads)"
    )
    n_heads: Count = Field(default=8, description="H, attention heads")
    e_layers: Few = Field(default=4, description="blocks of graph_processing: attention")
    d_layers: Few = Field(default=2, description="decoder blocks")
    dropout: Annotated[Float, Field(ge=0, lt=1)] = Field(default=0.1, description="dropout rate")
    freq: Literal["d", "h", "t"] = Field(default="d", description="calendar frequency; t adds the minute")
    use_celestial_graph: bool = Field(default=True, description="13 body nodes; false: every input is a node")
    combiner: Literal["hierarchical", "batched"] = Field(
        default="hierarchical", description="how adjacencies are merged"
    )
    fusion_layers: Few = Field(default=2, description="blocks of the batched combiner")
    celestial_fusion_layers: Few = Field(default=4, description="blocks of the hierarchical combiner")
    graph_processing: Literal["partitioned", "attention"] = Field(
        default="partitioned", description="how the graph is used"
    )
    adjacency_threshold: Annotated[Float, Field(ge=0)] = Field(
        default=0.0, description="graph attention hides edges with |A| at or below this"
    )
    adjacency_bias: bool = Field(
        default=False, description="graph attention adds a learned multiple of A to its scores"
    )
    use_mixture_decoder: bool = Field(default=False, description="forecast a mixture of normals instead of a point")
    mdn_components: Few = Field(default=3, description="K, components of the mixture")
    mdn_multivariate_mode: Literal["independent", "joint"] = Field(
        default="independent", description="mixture components drawn per target, or shared by the targets"
    )
    use_stochastic_learner: bool = Field(default=False, description="sample the learned adjacency in training")
    use_hierarchical_mapping: bool = Field(default=False, description="add a learned summary of the history")
    compatibility: Literal["corrected", "original"] = Field(
        default="corrected",
        description="original: phase_edges zero, feature_map positional, calendar_marks integer",
    )
    phase_edges: Literal["computed", "zero"] = Field(
        default="computed", description="angles, speeds and distances of bodies"
    )
    feature_map: Literal["named", "positional"] = Field(
        default="named", description="which columns belong to which body"
    )
    calendar_marks: Literal["fraction", "integer"] = Field(
        default="fraction",
        description="integer casts marks before scaling them, as existing checkpoints were trained",
    )
    max_attention_tokens: Count | None = Field(
        default=None, description="accepted for existing files; attention is exact whatever it says"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_compatibility(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        original = values.get("compatibility") == "original"
        return values | {key: pair[original] for key, pair in COMPATIBILITY.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _raise_conflicts(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        F = self.enc_in
        if self.label_len > self.seq_len:
            message = f"label_len {self.label_len} is longer than seq_len {self.seq_len}: lower label_len"
            yield Conflict(("model.label_len", "model.seq_len"), message)
        if self.label_len + self.pred_len > 5000:
            message = "label_len + pred_len is above 5000 steps, the length of the position table"
            yield Conflict(("model.pred_len", "model.label_len"), message)
        if self.use_celestial_graph and self.feature_map == "named" and len(COLUMNS) != F:
            message = (
                f"feature_map: named needs enc_in {len(COLUMNS)} (the columns of the data file), not {F}; "
                "use feature_map: positional, or use_celestial_graph: false"
            )
            yield Conflict(("model.enc_in", "model.feature_map"), message)
        if self.use_celestial_graph and self.phase_edges == "computed" and len(COLUMNS) != F:
            message = f"phase_edges: computed needs enc_in {len(COLUMNS)}, not {F}; use phase_edges: zero"
            yield Conflict(("model.enc_in", "model.phase_edges"), message)
        if self.use_celestial_graph and self.feature_map == "positional" and F < 116:
            message = f"feature_map: positional reads columns 5 to 115, but enc_in is {F}"
            yield Conflict(("model.enc_in", "model.feature_map"), message)
        if self.use_celestial_graph and BODY_CHANNELS % self.n_heads:
            message = (
                f"n_heads {self.n_heads} does not divide the {BODY_CHANNELS} channels of a body: "
                "choose 1, 2, 4, 8, 16 or 32"
            )
            yield Conflict(("model.n_heads", "model.use_celestial_graph"), message)
        if self.graph_processing == "partitioned" and self.c_out >= self.nodes:
            message = (
                "graph_processing: partitioned needs more nodes than targets, "
                f"but there are {self.nodes} nodes and c_out is {self.c_out}"
            )
            names = ("c_out", "use_celestial_graph", "enc_in", "graph_processing")
            yield Conflict(tuple(f"model.{name}" for name in names), message)
        if self.c_out > F:
            message = f"c_out {self.c_out} is above enc_in {F}: the targets are inputs too"
            yield Conflict(("model.c_out", "model.enc_in"), message)

    @property
    def nodes(self) -> int:
        """N: the bodies, or the inputs where there is no celestial graph."""
        return len(BODIES) if self.use_celestial_graph else self.enc_in

    @property
    def embed_dim(self) -> int:
        """D: `d_model` raised to the next multiple of lcm(nodes, n_heads)."""
        step = math.lcm(self.nodes, self.n_heads)
        return -(-self.d_model // step) * step


class TrainingConfig(Section):
    """How the parameters are found."""

    epochs: Count = Field(default=50, description="passes over the training windows")
    max_steps: Count | None = Field(default=None, description="stop after this many optimizer steps")
    max_minutes: Positive | None = Field(
        default=None, description="stop training after this many minutes of one process, then evaluate"
    )
    batch_size: Count = Field(default=16, description="windows a batch")
    gradient_accumulation_steps: Count = Field(default=1, description="batches an optimizer step")
    learning_rate: Positive = Field(default=1e-3, description="peak learning rate of Adam")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(default=0.0, description="L2 penalty of Adam")
    clip_grad_norm: Positive | None = Field(default=1.0, description="largest global gradient norm")
    nonfinite_steps: Annotated[Int, Field(ge=0)] = Field(
        default=0, description="steps with a NaN or infinite gradient to leave out before training stops"
    )
    lr_schedule: Literal["warmup_cosine", "cosine", "step", "plateau", "constant"] = Field(
        default="warmup_cosine", description="learning rate by epoch"
    )
    warmup_epochs: Annotated[Int, Field(ge=0)] = Field(
        default=5, description="epochs of linear warm-up (warmup_cosine)"
    )
    min_lr: Annotated[Float, Field(ge=0)] = Field(default=1e-6, description="lowest learning rate of any schedule")
    lr_gamma: Annotated[Float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="factor by which step and plateau lower the learning rate"
    )
    lr_step_epochs: Count = Field(default=10, description="epochs between two steps of the schedule step")
    lr_patience: Count = Field(
        default=5, description="epochs without a better validation loss before plateau lowers the rate"
    )
    patience: Count = Field(default=999, description="epochs without improvement before stopping")
    kl_weight: Annotated[Float, Field(ge=0)] = Field(
        default=5e-5, description="weight of the stochastic learner's KL term"
    )
    seed: Annotated[Int, Field(ge=0)] = Field(default=2024, description="seed of weights, dropout and sample order")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_lr > self.learning_rate:
            message = f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}: lower min_lr"
            _raise_conflicts([Conflict(("training.min_lr", "training.learning_rate"), message)])
        return self


class RunConfig(Section):
    """Where and as what it runs."""

    name: str = Field(
        default="pgat",
        pattern=r"^\w[\w.-]*$",
        description="name of the run and of its folder",
        json_schema_extra={"expected": "a name of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"},
    )
    output: PathText = Field(default="runs", description="folder that holds the runs")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where to compute; auto: the first GPU if there is one",
        json_schema_extra={"expected": "auto, cpu, cuda or cuda:N"},
    )
    backend: Literal["auto", "reference", "torch", "triton"] = Field(
        default="auto", description="implementation of the model"
    )
    precision: Literal["auto", "highest", "high", "bf16", "fp16"] = Field(
        default="highest",
        description="of products in training; high: TF32 where there is any; auto: 16 bits on a GPU, else highest",
    )
    compile: Annotated[Literal["auto", "on", "whole", "off"], BeforeValidator(_on_off)] = Field(
        default="auto",
        description="torch.compile for training; auto: where the run is long enough to pay for it; "
        "on a CPU auto and on compile the operators alone, whole the whole model",
    )
    combiner_chunk: Annotated[Literal["auto", "off"] | Count, BeforeValidator(_off)] = Field(
        default="auto", description="timesteps that the combiner computes at a time; off: all at once, slowly"
    )
    recompute: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = Field(
        default="auto",
        description="compute the combiner and the graph attention again in the backward pass: less memory, more time, "
        "the same results; auto: on a CPU only what does not fit into a quarter of the free memory",
    )
    exact_dropout: bool = Field(
        default=False, description="draw the dropout of attention over identical keys too, as the reference does"
    )
    deterministic: bool = Field(default=True, description="on a GPU choose repeatable algorithms, even slower ones")
    log_interval: Count = Field(default=10, description="optimizer steps between log lines (without a progress bar)")
    monitor_interval: Count = Field(default=25, description="optimizer steps between readings of memory and speed")
    metrics_level: LogLevel = Field(default="info", description="lowest level written to metrics.jsonl")
    memory_level: LogLevel = Field(default="info", description="lowest level written to memory.jsonl")
    tensorboard: bool = Field(default=False, description="write metrics and memory for TensorBoard too")
    memory_limit_gb: Positive | None = Field(
        default=None, description="GiB of process memory: a warning at 90 %, a checkpoint and a stop at 100 %"
    )
    device_memory_limit_gb: Positive | None = Field(
        default=None, description="GiB of GPU memory: a warning at 90 %, a checkpoint and a stop at 100 %"
    )
    checkpoint_epochs: Count | None = Field(
        default=1, description="epochs between checkpoints; null: only by minutes, the best and the last"
    )
    checkpoint_minutes: Positive | None = Field(default=15.0, description="minutes between checkpoints; null: none")
    keep_checkpoints: Count = Field(default=3, description="newest checkpoints to keep, beside the best one")
    rank_timeout_seconds: Positive = Field(
        default=600.0, description="that ranks wait for one that does not answer, before the run ends and names it"
    )
    plots: bool = Field(default=True, description="draw plots at the end, where matplotlib is installed")


class Config(Section):
    """A whole run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _raise_conflicts(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        sizes = {"c_out": self.model.c_out, "enc_in": self.model.enc_in}
        for name, columns, size in (
            ("targets", self.data.targets, "c_out"),
            ("inputs", self.data.inputs, "enc_in"),
        ):
            if columns is not None and len(columns) != sizes[size]:
                message = f"data.{name} names {len(columns)} columns, but model.{size} is {sizes[size]}"
                yield Conflict((f"data.{name}", f"model.{size}"), message)


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
