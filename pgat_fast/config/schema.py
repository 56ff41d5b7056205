"""Define every setting: its type, its default and its limits.

A section holds the settings of one part of the package. No setting name occurs in two sections, so that files may be
flat.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pgat_fast.data.bodies import BODY_CHANNELS
from pgat_fast.data.calendar_names import checked_name
from pgat_fast.data.columns import COLUMNS
from pgat_fast.sizes import Sizes


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

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise all conflicts as one validation error, whose context holds them."""
        conflicts = list(self._conflicts())
        if conflicts:
            text = "; ".join(f"{conflict.keys[0]}: {conflict.message}" for conflict in conflicts)
            raise PydanticCustomError("conflicts", "{text}", {"text": text, "conflicts": conflicts})
        return self

    def _conflicts(self) -> Iterable[Conflict]:
        return ()


class DataConfig(Section):
    """The data file, its columns and its rows."""

    path: PathText = "data/prepared_financial_data.csv"
    """data file, as `pgat-fast data build` writes it"""
    inputs: Names | None = None
    """input columns; default: the 118 columns of the data file, or all numeric ones without the celestial graph"""
    targets: Names | None = None
    """target columns; default: the first c_out inputs"""
    rows: Count | None = None
    """number of rows to use, counted from the end of the file; null: all"""
    skip_last: Annotated[Int, Field(ge=0)] = 0
    """number of rows to leave out at the end of the file, as a backtest does"""
    target_kind: Literal["returns", "levels"] = "returns"
    """returns: the targets are log(price / previous close); levels: log(price)"""
    base_price: Positive | None = None
    """close before the first row of the file; null: the one that `data build` stored beside the file, else 1"""
    trading_days: Annotated[str, AfterValidator(checked_name)] = "auto"
    """calendar of the days to forecast: nyse, weekdays, daily, weekly, monthly, or weekdays such as
    Sun,Mon,Tue,Wed,Thu; auto: the one that the dates of the file follow"""
    validation_length: Count = 50
    """rows of the validation split"""
    test_length: Count = 50
    """rows of the test split"""
    decoder_future: Literal["zeros", "known"] = "zeros"
    """decoder input for the days to forecast; known: the celestial columns and time_delta, which are known ahead"""


class ModelConfig(Sizes, Section):
    """The architecture: which function of the inputs is computed, with which parameters."""

    seq_len: Annotated[Int, Field(ge=1, le=5000)] = 250
    """S, days of history that the encoder reads"""
    label_len: Annotated[Int, Field(ge=0)] = 125
    """L, days of history that the decoder reads"""
    pred_len: Count = 10
    """P, days to forecast"""
    enc_in: Columns = 118
    """F, number of inputs"""
    dec_in: Columns = 118
    """number of decoder inputs"""
    c_out: Columns = 4
    """number of targets"""
    d_model: Annotated[Int, Field(ge=1, le=65_536)] = 130
    """width of the model; raised to the next multiple of lcm(nodes, n_heads)"""
    n_heads: Count = 8
    """H, attention heads"""
    e_layers: Few = 4
    """blocks of graph attention (graph_processing: attention)"""
    d_layers: Few = 2
    """decoder blocks"""
    dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.1
    """dropout rate"""
    freq: Literal["d", "h", "t"] = "d"
    """calendar features: d and h use month, day, weekday and hour; t adds the minute"""
    use_celestial_graph: bool = True
    """true: a graph of 13 bodies; false: every input is a node"""
    combiner: Literal["hierarchical", "batched"] = "hierarchical"
    """method that merges the adjacencies of the graph"""
    fusion_layers: Few = 2
    """blocks of the batched combiner"""
    celestial_fusion_layers: Few = 4
    """blocks of the hierarchical combiner"""
    graph_processing: Literal["partitioned", "attention"] = "partitioned"
    """partitioned: the target nodes read the others along A; attention: graph attention over the nodes of each day"""
    adjacency_threshold: Annotated[Float, Field(ge=0)] = 0.0
    """graph attention ignores edges with |A| at or below this"""
    adjacency_bias: bool = False
    """add a learned multiple of A to the scores of graph attention"""
    use_mixture_decoder: bool = False
    """forecast a mixture of normal distributions instead of a point"""
    mdn_components: Few = 3
    """K, components of the mixture"""
    mdn_multivariate_mode: Literal["independent", "joint"] = "independent"
    """independent: every target has a mixture of its own; joint: the targets share their component"""
    use_stochastic_learner: bool = False
    """sample the learned adjacency during training"""
    use_hierarchical_mapping: bool = False
    """add a learned summary of the history to every day"""
    compatibility: Literal["corrected", "original"] = "corrected"
    """default of the next three; original: zero, positional and integer, as existing checkpoints were trained"""
    phase_edges: Literal["computed", "zero"] = "computed"
    """edge features from the angles, speeds and distances of the bodies"""
    feature_map: Literal["named", "positional"] = "named"
    """assignment of columns to bodies: by name, or by position as in existing checkpoints"""
    calendar_marks: Literal["fraction", "integer"] = "fraction"
    """integer: marks are cast to integers before they are scaled, as existing checkpoints were trained"""
    max_attention_tokens: Count | None = None
    """has no effect (attention is exact); accepted because existing files set it"""

    @model_validator(mode="before")
    @classmethod
    def _resolve_compatibility(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        original = values.get("compatibility") == "original"
        return values | {key: pair[original] for key, pair in COMPATIBILITY.items() if values.get(key) is None}

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


class TrainingConfig(Section):
    """The optimization: length, batches, learning rate, early stopping, seed."""

    epochs: Count = 50
    """passes over the training windows"""
    max_steps: Count | None = None
    """optimizer steps after which training stops; null: no limit"""
    max_minutes: Positive | None = None
    """minutes after which a process stops training and evaluates; null: no limit"""
    batch_size: Count = 16
    """windows in a batch"""
    gradient_accumulation_steps: Count = 1
    """batches in an optimizer step"""
    learning_rate: Positive = 1e-3
    """peak learning rate of Adam"""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """L2 penalty of Adam"""
    clip_grad_norm: Positive | None = 1.0
    """largest global norm of the gradient; null: no limit"""
    nonfinite_steps: Annotated[Int, Field(ge=0)] = 0
    """number of steps with a NaN or infinite gradient to skip before training stops"""
    lr_schedule: Literal["warmup_cosine", "cosine", "step", "plateau", "constant"] = "warmup_cosine"
    """learning rate as a function of the epoch"""
    warmup_epochs: Annotated[Int, Field(ge=0)] = 5
    """epochs of linear warm-up (warmup_cosine)"""
    min_lr: Annotated[Float, Field(ge=0)] = 1e-6
    """lowest learning rate of any schedule"""
    lr_gamma: Annotated[Float, Field(gt=0, lt=1)] = 0.5
    """factor by which step and plateau lower the learning rate"""
    lr_step_epochs: Count = 10
    """epochs between two reductions (step)"""
    lr_patience: Count = 5
    """epochs without a better validation loss before a reduction (plateau)"""
    patience: Count = 999
    """epochs without a better validation loss before training stops"""
    kl_weight: Annotated[Float, Field(ge=0)] = 5e-5
    """weight of the KL term of the stochastic learner"""
    seed: Annotated[Int, Field(ge=0)] = 2024
    """seed of the weights, the dropout and the order of the samples"""

    def _conflicts(self) -> Iterator[Conflict]:
        if self.min_lr > self.learning_rate:
            message = f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}: lower min_lr"
            yield Conflict(("training.min_lr", "training.learning_rate"), message)


class RunConfig(Section):
    """The run: its name, its device and backend, its logs and checkpoints."""

    name: Annotated[
        str,
        Field(
            pattern=r"^\w[\w.-]*$",
            json_schema_extra={"expected": "a name of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"},
        ),
    ] = "pgat"
    """name of the run and of its folder"""
    output: PathText = "runs"
    """folder that contains the folders of the runs"""
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra={"expected": "auto, cpu, cuda or cuda:N"}),
    ] = "auto"
    """device to compute on; auto: the first GPU if there is one"""
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    """implementation of the model"""
    precision: Literal["auto", "highest", "high", "bf16", "fp16"] = "auto"
    """precision of matrix products in training; highest: float32; high: TF32 where available; auto: bf16 on a GPU that
    has it, else highest"""
    compile: Annotated[Literal["auto", "on", "whole", "off"], BeforeValidator(_on_off)] = "auto"
    """torch.compile for training; auto: if it saves time in this run; whole: on a CPU compile the whole model, not
    only its operators"""
    combiner_chunk: Annotated[Literal["auto", "off"] | Count, BeforeValidator(_off)] = "auto"
    """timesteps that the combiner computes at a time; off: all at once, which is slow"""
    recompute: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = "auto"
    """compute the combiner and the graph attention again in the backward pass: less memory, more time, the same
    results; auto: on a CPU only what does not fit into a quarter of the free memory"""
    exact_dropout: bool = False
    """draw the dropout of attention over identical keys too, as the reference does"""
    deterministic: bool = True
    """use repeatable algorithms on a GPU, even if they are slower; without them attention is torch's fused one"""
    log_interval: Count = 10
    """optimizer steps between log lines (without a progress bar)"""
    monitor_interval: Count = 25
    """optimizer steps between readings of memory and speed"""
    metrics_level: LogLevel = "info"
    """lowest level written to metrics.jsonl"""
    memory_level: LogLevel = "info"
    """lowest level written to memory.jsonl"""
    tensorboard: bool = False
    """also write metrics and memory for TensorBoard"""
    memory_limit_gb: Positive | None = None
    """GiB of process memory: a warning at 90 %, a checkpoint and a stop at 100 %"""
    device_memory_limit_gb: Positive | None = None
    """GiB of GPU memory: a warning at 90 %, a checkpoint and a stop at 100 %"""
    checkpoint_epochs: Count | None = 1
    """epochs between checkpoints; null: only by minutes, the best and the last"""
    checkpoint_minutes: Positive | None = 15.0
    """minutes between checkpoints; null: none by time"""
    keep_checkpoints: Count = 3
    """number of newest checkpoints to keep, besides the best one"""
    rank_timeout_seconds: Positive = 600.0
    """seconds to wait for a rank that does not answer, before the run ends and names it"""
    plots: bool = True
    """draw plots at the end, if matplotlib is installed"""


class Config(Section):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunConfig = RunConfig()

    def _conflicts(self) -> Iterator[Conflict]:
        for name, columns, size_name, size in (
            ("targets", self.data.targets, "c_out", self.model.c_out),
            ("inputs", self.data.inputs, "enc_in", self.model.enc_in),
        ):
            if columns is not None and len(columns) != size:
                message = f"data.{name} names {len(columns)} columns, but model.{size_name} is {size}"
                yield Conflict((f"data.{name}", f"model.{size_name}"), message)


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
