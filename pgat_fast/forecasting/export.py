"""Export of a run as one file that forecasts without this package: a program of `torch.export`, or an ONNX model."""

import io
import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from pgat_fast import __version__
from pgat_fast.data.calendar import calendar_marks
from pgat_fast.data.columns import CELLS
from pgat_fast.data.prices import PRICES
from pgat_fast.errors import BackendError, CheckpointError, ConfigError, first_line
from pgat_fast.forecasting.history import Source
from pgat_fast.forecasting.load_run import Run
from pgat_fast.forecasting.predict import Ahead, forecast_ahead, known_future
from pgat_fast.forecasting.standalone import StandaloneForecaster, dimensions
from pgat_fast.model.precision import products_in
from pgat_fast.training.checkpoint_files import read_manifest
from pgat_fast.training.manifest import WEIGHTS
from pgat_fast.utils.io import write_atomically
from pgat_kernels.conditioning import error_bounds, relative_errors, rounding_spread

METADATA: Final = "metadata.json"
"""Name of the metadata among the extra files of a program, and among the properties of an ONNX model."""

FORMATS: Final = ("pt2", "onnx")

_ONNX_PACKAGES: Final = ("onnx", "onnxscript")

_log = logging.getLogger(__name__)

Inputs = dict[str, Tensor]
Call = Callable[[Inputs], dict[str, Tensor]]


def export_run(
    run: Run,
    out: str | Path,
    source: Source | None = None,
    *,
    file_format: str | None = None,
    last_close: float | None = None,
) -> dict[str, Any]:
    """Write `run` as one file that takes unscaled values and returns prices; return its metadata.

    The file contains the weights, the scalers, the construction of the decoder input and the conversion to prices (see
    `StandaloneForecaster`). Before it is written, its forecast is compared with that of `predict`.

    Args:
        run: a run from `load_run`. The program computes on the device of the run.
        out: `FILE.pt2` or `FILE.onnx`. An existing file is replaced.
        source: history for the comparison, as for `predict`; `data.path` of the run by default.
        file_format: `pt2` (`torch.export`) or `onnx`; by default that of the name of `out`.
        last_close: as for `predict`.

    Returns:
        The metadata that the file contains. `check` holds the relative deviation of each output from `predict`, and the
        bound that rounding allows.

    Raises:
        ConfigError: the format is unknown, or a package that it needs is not installed.
        DataError: the history cannot be read; `out` is not written.
        CheckpointError: the forecasts deviate by more than rounding explains, are not finite, or `out` cannot be
            written.
        BackendError: torch cannot export the model.
    """
    out = Path(out)
    chosen = _format_of(out, file_format)
    ahead = forecast_ahead(run, run.config.data.path if source is None else source, last_close=last_close)
    forecaster = StandaloneForecaster(run)
    inputs = example_inputs(run, forecaster, ahead)
    expected = _expected(run, forecaster, ahead, inputs)
    metadata = _describe(run, forecaster, inputs, expected)
    program = export_forecaster(forecaster, inputs)
    serialize, load = (_serialize_program, _load_program) if chosen == "pt2" else (_serialize_onnx, _load_onnx)
    converted = program if chosen == "pt2" else _to_onnx(program, metadata)
    call = load(serialize(converted, metadata))
    bounds = _bounds(forecaster, inputs, run.device, other_functions=chosen == "onnx")
    deviation = None if call is None else _deviation(call, inputs, expected, run.device)
    for name, value in (deviation or {}).items():
        if not value <= bounds[name]:
            raise CheckpointError(
                f"{out}: not written: {name} of the exported program deviate from `predict` by {value:.1e} of their "
                f"size, but rounding explains at most {bounds[name]:.1e}"
            )
    metadata["check"] = {
        "source": ahead.history.table.source,
        "last_date": str(ahead.history.dates[-1]),
        "deviation": deviation,
        "bound": bounds,
    }
    content = serialize(converted, metadata)
    try:
        write_atomically(out, content)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error
    return metadata


def _format_of(out: Path, asked: str | None) -> str:
    named = out.suffix.removeprefix(".")
    if named not in FORMATS or asked not in (None, named):
        suffix = asked if asked in FORMATS else "pt2 (torch.export) or *.onnx"
        raise ConfigError(f"{out}: unknown format: name the file *.{suffix}")
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None] if named == "onnx" else []
    if missing:
        raise ConfigError(
            f'{out}: an ONNX file needs {" and ".join(missing)}: pip install "pgat-fast[onnx]", or write a *.pt2 file'
        )
    return named


def example_inputs(run: Run, forecaster: StandaloneForecaster, ahead: Ahead) -> Inputs:
    """Return the inputs of the program for the forecast `ahead`, a batch of one."""
    history, days, freq = ahead.history, ahead.days, run.config.model.freq
    rows = history.table.select(run.input_scaler.columns)[-forecaster.seq_len :]
    dates = history.table.dates[-forecaster.seq_len :]
    inputs: dict[str, Any] = {
        "history": rows,
        "history_marks": calendar_marks(dates, freq),
        "future_marks": calendar_marks(days, freq),
    }
    if forecaster.known_columns:
        inputs["future"] = known_future(days, history.dates[-1], forecaster.known_columns).values
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x))[None].to(run.device) for name, x in inputs.items()}
    if forecaster.needs_close:
        tensors["last_close"] = torch.tensor([history.last_close], dtype=torch.float64, device=run.device)
    return tensors


def export_forecaster(forecaster: StandaloneForecaster, inputs: Inputs) -> torch.export.ExportedProgram:
    """Return the program of `forecaster` for any number of windows, in operators of torch alone.

    `inputs` are one window. Raises BackendError if torch cannot export it.
    """
    batch = torch.export.Dim("batch")
    pair = {name: torch.cat((x, x)) for name, x in inputs.items()}  # torch would take a batch of one for a constant
    shapes = {name: {0: batch} for name in pair}
    try:
        with torch.no_grad():  # the reference would recompute its blocks in a backward pass
            program = torch.export.export(forecaster, (), pair, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of many types, all of torch's compiler
        raise BackendError(f"torch {torch.__version__} cannot export this model: {first_line(error)}") from error
    foreign = {
        str(node.target)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"
    }
    assert not foreign, foreign
    return program


def _expected(run: Run, forecaster: StandaloneForecaster, ahead: Ahead, inputs: Inputs) -> dict[str, Tensor]:
    """Return the outputs that `predict` computes, from the backend of the run."""
    expected = forecaster.outputs(ahead.output, inputs.get("last_close"))
    expected["prices" if forecaster.kind is not None else "targets"] = torch.from_numpy(ahead.values)
    return expected


def _bounds(
    forecaster: StandaloneForecaster, inputs: Inputs, device: torch.device, *, other_functions: bool
) -> dict[str, float]:
    """Return how far rounding may move each output, see `pgat_kernels.conditioning`.

    All weights move by one unit in the last place. With `other_functions` (a program that computes sines and arc
    tangents by another library) the scaled inputs move too, which some forecasts magnify: the two lunar nodes are 180
    degrees apart, so that the sign of the difference of their angles (section 1 of docs/model.md) depends on its last
    bit.
    """
    names, weights = zip(*forecaster.model.named_parameters(), strict=True)
    outputs: list[str] = []

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        parameters = dict(zip(names, tensors, strict=False))
        x_enc, x_dec = tensors[len(names) :] or (scaled[0], scaled[2])
        forecast, _ = functional_call(forecaster.model, parameters, (x_enc, scaled[1], x_dec, scaled[3]))
        named = forecaster.outputs(forecast, inputs.get("last_close"))
        outputs[:] = named
        return list(named.values())

    with torch.no_grad(), products_in("highest", device):
        scaled = forecaster.model_inputs(
            inputs["history"], inputs["history_marks"], inputs["future_marks"], inputs.get("future")
        )
        spread = rounding_spread(compute, [*weights, *((scaled[0], scaled[2]) if other_functions else ())])
    return dict(zip(outputs, error_bounds(spread, torch.float32), strict=True))


def _deviation(call: Call, inputs: Inputs, expected: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    """Return the largest relative error of each output, for one window and for a batch of three equal ones."""
    worst = dict.fromkeys(expected, 0.0)
    for batch in (1, 3):
        with torch.no_grad(), products_in("highest", device):
            outputs = call({name: x.repeat(batch, *[1] * (x.dim() - 1)) for name, x in inputs.items()})
        for row in range(batch):
            results = [outputs[name][row : row + 1].cpu() for name in expected]
            errors = relative_errors(results, [x.cpu() for x in expected.values()])
            worst = {name: max(worst[name], error) for name, error in zip(expected, errors, strict=True)}
    return worst


def _describe(
    run: Run, forecaster: StandaloneForecaster, inputs: Inputs, outputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the metadata, without the check."""
    model, data = run.config.model, run.config.data
    marks = list(CELLS)[: inputs["history_marks"].shape[-1]]

    def describe(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            name: {
                "shape": ["batch", *tensor.shape[1:]],
                "axes": list(axes),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            for (name, tensor), axes in zip(tensors.items(), dimensions(list(tensors)).values(), strict=True)
        }

    return {
        "format": "pgat-fast program",
        "version": __version__,
        "torch": str(torch.__version__),
        "run": run.folder.resolve().name,
        "checkpoint": run.checkpoint.name,
        "checkpoint_sha256": read_manifest(run.checkpoint).files[WEIGHTS].sha256,
        "device": str(run.device),
        "seq_len": model.seq_len,
        "label_len": model.label_len,
        "pred_len": model.pred_len,
        "freq": model.freq,
        "columns": list(run.input_scaler.columns),
        "future_columns": list(forecaster.known_columns),
        "marks": {name: CELLS[name] for name in marks},
        "targets": list(run.target_scaler.columns),
        "target_kind": data.target_kind,
        "prices": list(PRICES) if forecaster.kind is not None else [],
        "inputs": describe(inputs),
        "outputs": describe(outputs),
    }


def _serialize_program(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of a `.pt2` file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata, indent=2)})
    return buffer.getvalue()


def _load_program(content: bytes) -> Call:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: module(**inputs)


def _to_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> Any:
    """Return the `torch.onnx.ONNXProgram` of `program`. Raises BackendError if torch cannot convert it."""
    names: dict[str, Any] = {"input_names": list(metadata["inputs"]), "output_names": list(metadata["outputs"])}
    try:
        # The optimizer of onnxscript 0.7 removes the addition of 1e-8, so that logarithms of 0 become infinite.
        return torch.onnx.export(program, dynamo=True, verbose=False, optimize=False, **names)
    except Exception as error:  # of many types, from the packages involved
        raise BackendError(f"torch {torch.__version__} cannot write this model as ONNX: {first_line(error)}") from error


def _serialize_onnx(program: Any, metadata: Mapping[str, Any]) -> bytes:
    """Return the content of an `.onnx` file."""
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    return program.model_proto.SerializeToString()


def _load_onnx(content: bytes) -> Call | None:
    """Return the function that the ONNX model computes; None, with a warning, without onnxruntime."""
    if find_spec("onnxruntime") is None:
        _log.warning('the ONNX model is not checked: onnxruntime is not installed: pip install "pgat-fast[onnx]"')
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(inputs: Inputs) -> dict[str, Tensor]:
        results = session.run(names, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}

    return call
