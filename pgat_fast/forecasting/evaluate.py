"""Evaluation of a trained run on its test windows."""

from collections.abc import Callable

from pgat_fast.data.load import load_splits
from pgat_fast.errors import CheckpointError
from pgat_fast.evaluation.assessment import Assessment, assess
from pgat_fast.forecasting.load_run import Run
from pgat_fast.training.other_machine import data_file_of


def evaluate(run: Run, *, on_batch: Callable[[], None] | None = None, progress: bool = False) -> Assessment:
    """Evaluate the weights of `run` on the test windows of its data file.

    That is `data.path` of its configuration, or, if there is no such file, where it was during the training.

    The returned `Assessment` holds pandas tables: `metrics()`, `forecasts`, `adjacency`. With the checkpoint and the
    data of the training it equals `results.json`, bitwise on the same machine.

    Args:
        run: a run from `load_run`.
        on_batch: called before every batch; an exception it raises ends the evaluation.
        progress: show a progress bar if standard error is a terminal.

    Raises:
        DataError, ConfigError: the data file cannot be read or does not fit the configuration.
        CheckpointError: the training rows of the data file give different scalers from those of the run.
    """
    data = run.config.data.model_copy(update={"path": data_file_of(run.config, run.folder, run.about)})
    table, splits = load_splits(data, run.config.model, run.device)
    for name, run_scaler, data_scaler in (
        ("inputs", run.input_scaler, splits.input_scaler),
        ("targets", run.target_scaler, splits.target_scaler),
    ):
        if run_scaler.to_dict() != data_scaler.to_dict():
            raise CheckpointError(
                f"{data.path}: the scale of the {name} differs from that of the training: use the data file "
                "of the training, or train a new run"
            )
    return assess(run.model, run.config, table, splits, on_batch=on_batch, progress=progress)
