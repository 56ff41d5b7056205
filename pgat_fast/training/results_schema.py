"""Schema of `results.json` as pydantic models; `results.schema.json` in this folder is their JSON Schema."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Metrics = dict[str, float | None]

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EpochRecord(_Part):
    """An epoch. The last one is partial if a limit ended training within it."""

    epoch: int = Field(ge=1)
    learning_rate: float
    optimizer_steps: int
    skipped_steps: int
    train_loss: float | None
    validation_loss: float
    seconds: float
    complete: bool


class Check(_Part):
    """A line of the checklist, see `training.checklist`."""

    check: str
    passed: bool
    figure: str


class DataRecord(_Part):
    """Data of the run."""

    path: str
    sha256: str
    rows: int
    first_date: str
    last_date: str
    base_price: float
    """Close before `first_date`; 1 if it is unknown."""
    windows: dict[str, int]


class TestRecord(_Part):
    """Errors of the model and of the naive baselines on the test windows, and the skill of the model against them.

    `scaled` and `price` hold, under `model` and each baseline, metrics overall and by target, and `skill`: 1 - MSE /
    MSE of the baseline. `by_horizon` holds the RMSE of each forecast day.
    """

    loss: float | None
    """None if it is not finite."""
    windows: int
    relative_prices: bool
    """Whether the close before the first row is unknown, so that prices are in units of it."""
    scaled: dict[str, Any]
    price: dict[str, Any] | None
    by_horizon: dict[str, dict[str, list[float | None]] | None]
    intervals: dict[str, Any] | None
    mixture: dict[str, Any] | None


class CheckpointsRecord(_Part):
    """Checkpoints in the folder `checkpoints` of the run, and the faults found in them."""

    best: str
    latest: str
    kept: list[str]
    verified: bool
    faults: list[str]


class ResultsRecord(_Part):
    """Content of `results.json`."""

    schema_version: int = 1
    name: str
    task: str
    status: str
    config: dict[str, dict[str, Any]]
    seq_len: int
    pred_len: int
    targets: list[str]
    target_count: int
    parameters: int
    started: str
    finished: str
    training_seconds: float
    evaluation_seconds: float
    resumes: int
    device: str
    ranks: int = 1
    """Number of processes that trained together in the last part of the run."""
    backend: str
    precision: str
    """Precision of products in training: `run.precision`, with `auto` resolved."""
    compiled: bool = False
    """Whether training was compiled."""
    compile_check: dict[str, Any] | None = None
    """Comparison of the first compiled step of the last process with an eager one: `regions`, `fault` (None if there is
    none), `worst_error`, `bound`, `parameter`, `eager_seconds`, `compiled_seconds`."""
    kernels: str = "none"
    """Operators that kernels computed, see `pgat_fast.model.kernel_summary`."""
    versions: dict[str, str]
    data: DataRecord
    training_ended: str
    initial_validation_loss: float
    epochs: list[EpochRecord] = Field(min_length=1)
    train_losses: list[float | None]
    validation_losses: list[float]
    best_epoch: int
    best_validation_loss: float
    test: TestRecord
    adversarial: dict[str, Any]
    memory: dict[str, float | None]
    checkpoints: CheckpointsRecord
    checklist: list[Check]


def checked(results: dict[str, Any]) -> dict[str, Any]:
    """Return `results` as they will be written. Raise ValidationError if they do not match the schema."""
    return ResultsRecord.model_validate(results).model_dump()


def schema() -> str:
    """Return the JSON Schema of `results.json`."""
    return json.dumps(ResultsRecord.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema())
