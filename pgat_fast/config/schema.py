"""Every setting, its type, its default and its limits.

Sections hold what belongs together, so that a function can take the section it needs. No setting name occurs in
two sections: `loader` relies on it to accept flat files.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from pgat_fast.data.columns import BODIES, COLUMNS


def _number(value: Any) -> Any:
    """Accept a number that arrives as text: a YAML 1.1 reader turns `1e-6` into a string."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            try:
                return float(value)
            except ValueError:
                return value
    return value


def _names(value: Any) -> Any:
    """Accept a comma list (`a,b`) where a list of names is wanted."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value


def _distinct(names: list[str]) -> list[str]:
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"name {position + 1} is empty")
        if name in names[:position]:
            raise ValueError(f"{name!r} is named twice")
    return names


class Broken(NamedTuple):
    """A rule between settings that a configuration breaks: the full keys of the settings, and what to do."""

    settings: tuple[str, ...]
    message: str


def _refuse(broken: list[Broken]) -> None:
    """Raise all of `broken` as one validation error, whose context `broken` the loader reads."""
    if broken:
        text = "; ".join(f"{rule.settings[0]}: {rule.message}" for rule in broken)
        raise PydanticCustomError("broken_rules", "{text}", {"text": text, "broken": broken})


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Names = Annotated[list[str], BeforeValidator(_names), Field(min_length=1), AfterValidator(_distinct)]
Path = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are not converted, instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class DataConfig(Section):
    """Which file, which columns, which rows."""

    path: Path = Field(
        "data/prepared_financial_data.csv", description="the CSV that `pgat-fast data build` writes"
    )
    inputs: Names | None = Field(
        None, description="input columns; all numeric columns of the file by default"
    )
    targets: Names | None = Field(None, description="target columns; the first c_out inputs by default")
    validation_length: Annotated[Int, Field(ge=1)] = Field(50, description="rows of the validation split")
    test_length: Annotated[Int, Field(ge=1)] = Field(50, description="rows of the test split")
    decoder_future: Literal["zeros", "known"] = Field(
        "zeros",
        description="decoder input over the forecast days: zeros, or the sky and calendar known ahead",
    )


class ModelConfig(Section):
    """The architecture: which function of the inputs is computed, with which parameters."""

    seq_len: Annotated[Int, Field(ge=1, le=5000)] = Field(250, description="S, input days")
    label_len: Annotated[Int, Field(ge=0)] = Field(
        125, description="L, days of history that the decoder sees"
    )
    pred_len: Annotated[Int, Field(ge=1)] = Field(10, description="P, forecast days")
    enc_in: Annotated[Int, Field(ge=1)] = Field(118, description="F, input features")
    dec_in: Annotated[Int, Field(ge=1)] = Field(118, description="decoder input features")
    c_out: Annotated[Int, Field(ge=1)] = Field(4, description="number of targets")
    d_model: Annotated[Int, Field(ge=1)] = Field(
        130, description="width; raised to a multiple of lcm(nodes, n_heads)"
    )
    n_heads: Annotated[Int, Field(ge=1)] = Field(8, description="H, attention heads")
    e_layers: Annotated[Int, Field(ge=1)] = Field(4, description="blocks of graph_processing: attention")
    d_layers: Annotated[Int, Field(ge=1)] = Field(2, description="decoder blocks")
    dropout: Annotated[Float, Field(ge=0, lt=1)] = Field(0.1, description="dropout rate")
    freq: Literal["d", "h", "t"] = Field("d", description="calendar frequency; t adds the minute")
    use_celestial_graph: bool = Field(True, description="13 body nodes; false: every input is a node")
    combiner: Literal["hierarchical", "batched"] = Field(
        "hierarchical", description="how adjacencies are merged"
    )
    fusion_layers: Annotated[Int, Field(ge=1)] = Field(2, description="blocks of the batched combiner")
    celestial_fusion_layers: Annotated[Int, Field(ge=1)] = Field(
        4, description="blocks of the hierarchical combiner"
    )
    graph_processing: Literal["partitioned", "attention"] = Field(
        "partitioned", description="how the graph is used"
    )
    adjacency_threshold: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="graph attention hides edges with |A| at or below this"
    )
    adjacency_bias: bool = Field(
        False, description="graph attention adds a learned multiple of A to its scores"
    )
    use_mixture_decoder: bool = Field(False, description="forecast a mixture of normals instead of a point")
    mdn_components: Annotated[Int, Field(ge=1)] = Field(3, description="K, components of the mixture")
    mdn_multivariate_mode: Literal["independent", "joint"] = Field(
        "independent", description="mixture components drawn per target, or shared by the targets"
    )
    use_stochastic_learner: bool = Field(False, description="sample the learned adjacency in training")
    use_hierarchical_mapping: bool = Field(False, description="add a learned summary of the history")
    compatibility: Literal["corrected", "original"] = Field(
        "corrected", description="original: phase_edges zero, feature_map positional, calendar_marks integer"
    )
    phase_edges: Literal["computed", "zero"] | None = Field(
        None, description="angles, speeds and distances of bodies"
    )
    feature_map: Literal["named", "positional"] | None = Field(
        None, description="which columns belong to which body"
    )
    calendar_marks: Literal["fraction", "integer"] | None = Field(
        None, description="integer casts marks before scaling them, as existing checkpoints were trained"
    )
    max_attention_tokens: Annotated[Int, Field(ge=1)] | None = Field(
        None, description="accepted for existing files; attention is exact whatever it says"
    )

    @model_validator(mode="before")
    @classmethod
    def _resolve_compatibility(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        original = values.get("compatibility") == "original"
        choices = {
            "phase_edges": ("computed", "zero"),
            "feature_map": ("named", "positional"),
            "calendar_marks": ("fraction", "integer"),
        }
        return values | {key: pair[original] for key, pair in choices.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse(self._broken())
        return self

    def _broken(self) -> list[Broken]:
        broken = []

        def refuse(message: str, *names: str) -> None:
            broken.append(Broken(tuple(f"model.{name}" for name in names), message))

        if self.label_len > self.seq_len:
            refuse(
                f"label_len {self.label_len} is longer than seq_len {self.seq_len}: lower label_len",
                "label_len",
                "seq_len",
            )
        if self.label_len + self.pred_len > 5000:
            refuse(
                "label_len + pred_len is above 5000 steps, the length of the position table",
                "pred_len",
                "label_len",
            )
        if self.use_celestial_graph:
            if self.feature_map == "named" and self.enc_in != len(COLUMNS):
                refuse(
                    f"feature_map: named needs enc_in {len(COLUMNS)} (the columns of the data file), not {self.enc_in}"
                    "; use feature_map: positional, or use_celestial_graph: false",
                    "enc_in",
                    "feature_map",
                )
            if self.phase_edges == "computed" and self.enc_in != len(COLUMNS):
                refuse(
                    f"phase_edges: computed needs enc_in {len(COLUMNS)}, not {self.enc_in}; use phase_edges: zero",
                    "enc_in",
                    "phase_edges",
                )
            if self.feature_map == "positional" and self.enc_in < 116:
                refuse(
                    f"feature_map: positional reads columns 5 to 115, but enc_in is {self.enc_in}",
                    "enc_in",
                    "feature_map",
                )
        if self.graph_processing == "partitioned" and self.c_out >= self.nodes:
            refuse(
                f"graph_processing: partitioned needs more nodes ({self.nodes}) than targets (c_out {self.c_out})",
                "c_out",
                "graph_processing",
            )
        if self.c_out > self.enc_in:
            refuse(
                f"c_out {self.c_out} is above enc_in {self.enc_in}: the targets are inputs too",
                "c_out",
                "enc_in",
            )
        return broken

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

    epochs: Annotated[Int, Field(ge=1)] = Field(50, description="passes over the training windows")
    max_steps: Annotated[Int, Field(ge=1)] | None = Field(
        None, description="stop after this many optimizer steps"
    )
    batch_size: Annotated[Int, Field(ge=1)] = Field(16, description="windows a batch")
    gradient_accumulation_steps: Annotated[Int, Field(ge=1)] = Field(
        1, description="batches an optimizer step"
    )
    learning_rate: Annotated[Float, Field(gt=0)] = Field(1e-3, description="peak learning rate of Adam")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(0.0, description="L2 penalty of Adam")
    clip_grad_norm: Annotated[Float, Field(gt=0)] | None = Field(
        1.0, description="largest global gradient norm"
    )
    lr_schedule: Literal["warmup_cosine", "constant"] = Field(
        "warmup_cosine", description="learning rate by epoch"
    )
    warmup_epochs: Annotated[Int, Field(ge=0)] = Field(5, description="epochs of linear warm-up")
    min_lr: Annotated[Float, Field(ge=0)] = Field(1e-6, description="learning rate at the end of the cosine")
    patience: Annotated[Int, Field(ge=1)] = Field(
        999, description="epochs without improvement before stopping"
    )
    kl_weight: Annotated[Float, Field(ge=0)] = Field(
        5e-5, description="weight of the stochastic learner's KL term"
    )
    seed: Annotated[Int, Field(ge=0, le=2**63 - 1)] = Field(
        2024, description="seed of weights, dropout and sample order"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_lr > self.learning_rate:
            message = f"min_lr {self.min_lr} is above learning_rate {self.learning_rate}: lower min_lr"
            _refuse([Broken(("training.min_lr", "training.learning_rate"), message)])
        return self


class RunConfig(Section):
    """Where and as what it runs."""

    name: str = Field(
        "pgat",
        pattern=r"^\w[\w.-]*$",
        description="name of the run and of its folder",
        json_schema_extra={
            "expected": "a name of letters, digits, `_`, `.` and `-`, a letter or digit first"
        },
    )
    output: Path = Field("runs", description="folder that holds the runs")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where to compute; auto: the first GPU if there is one",
        json_schema_extra={"expected": "auto, cpu, cuda or cuda:N"},
    )
    backend: Literal["auto", "reference", "torch", "triton"] = Field(
        "auto", description="implementation of the model"
    )
    log_interval: Annotated[Int, Field(ge=1)] = Field(10, description="optimizer steps between log lines")


class Config(Section):
    """A whole run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        counts = (("targets", self.data.targets, "c_out"), ("inputs", self.data.inputs, "enc_in"))
        _refuse(
            [
                Broken(
                    (f"data.{name}", f"model.{size}"),
                    f"data.{name} names {len(columns)} columns, but model.{size} is {getattr(self.model, size)}",
                )
                for name, columns, size in counts
                if columns is not None and len(columns) != getattr(self.model, size)
            ]
        )
        return self
