"""Accuracy of each precision: of forecasts and gradients, and of the forecasts of a trained model.

    python -m bench.studies.accuracy --config configs/quickstart.yaml --errors configs/production_batched.yaml --json
    OUT

Two parts, not compiled:

- `errors`: a forward and backward pass of the configurations `--errors`, as in evaluation (nothing is random), with the
  backends `reference` and `torch` in each precision, against `reference` in float64 with the same weights and inputs:
  the relative errors |y - y64| / |y64| (Euclidean) of the forecast and of the gradients of all parameters together.
- `trained`: `pgat-fast train` with `--config` and the backend `torch`, for each seed in each precision: the errors of
  the forecasts of the test windows, in scaled units. `rmse_ratio` is relative to the first precision with the same
  seed.

Exit status 1: one of the measurements failed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bench.backend_spec import PRECISIONS, BackendSpec, build, configure
from bench.processes import add_arguments, do_task, make_parser, not_negative, positive, run_task, write
from bench.result_files import Record
from pgat_fast import build_model
from pgat_fast.data.windows import Batch, example
from pgat_fast.errors import PgatError
from pgat_fast.model.precision import Precision, float32_products_in, products_in, resolve_precision
from pgat_fast.training.loss import training_loss
from pgat_fast.utils.device import resolve_device

MODULE: Final = "bench.studies.accuracy"


# --- errors of one step -----------------------------------------------------------------------------------------------


def measure(task: Record) -> Record:
    """Return the errors of each of the task's `precisions` with its configuration; runs in a process of its own."""
    exact = step(task, BackendSpec("reference"))
    errors = {}
    for spec in (BackendSpec(name, precision) for precision in task["precisions"] for name in ("reference", "torch")):
        forecast, gradients = step(task, spec)
        errors[str(spec)] = {
            "forecast": relative_error(forecast, exact[0]),
            "gradients": relative_error(gradients, exact[1]),
        }
    return {"errors": errors}


def step(task: Record, spec: BackendSpec) -> tuple[Tensor, Tensor]:
    """Return the forecast and the gradients of all parameters of a step, each flattened, as float64.

    A spec without a precision is computed in float64.
    """
    precision = spec.precision
    config = configure(spec, task["config"], task["overrides"])
    device = torch.device("cpu") if precision is None else resolve_device(config.run.device)
    torch.manual_seed(config.training.seed)
    weights = build_model(config, backend="reference").state_dict()
    inputs = example(config.model, task["batch"])
    model = build(config, spec)
    model.load_state_dict(weights)
    model.eval()
    if precision is None:
        model, inputs = model.double(), Batch(*(tensor.double() for tensor in inputs))
    model, inputs = model.to(device), Batch(*(tensor.to(device) for tensor in inputs))
    resolved = "highest" if precision is None else resolve_precision(precision, device)
    with products_in(resolved, device):
        forecast, diagnostics = model(*inputs[:4])
    mode, weight = config.model.mdn_multivariate_mode, config.training.kl_weight
    loss = training_loss(forecast, diagnostics, inputs.y, mode, weight)
    with float32_products_in(resolved, device):
        loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    mean = forecast if isinstance(forecast, Tensor) else forecast[0]
    return mean.detach().double().cpu().flatten(), torch.cat([g.double().cpu().flatten() for g in gradients])


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Return |actual - exact| / |exact|."""
    return float((actual - exact).norm() / exact.norm())


# --- trained models ---------------------------------------------------------------------------------------------------


def train(config: str, overrides: list[str], precision: Precision, seed: int) -> Record:
    """Train once; return the errors on the test windows, or an `error`."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*overrides, "run.backend=torch", "run.compile=off", f"run.precision={precision}"]
        settings += [f"training.seed={seed}", f"run.output={folder}", "run.name=run", "run.plots=false"]
        code = "import sys; from pgat_fast.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "train", "--config", config, "--quiet", "--set", *settings]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            return {"error": (result.stderr.strip() or f"status {result.returncode}").splitlines()[-1]}
        test = json.loads((Path(folder) / "run" / "results.json").read_bytes())["test"]
    errors = test["scaled"]["model"]["overall"]
    return {"rmse": errors["rmse"], "mae": errors["mae"], "skill": test["scaled"]["skill"]}


def main() -> int:
    if sys.argv[1:2] == ["--task"]:
        return do_task(measure, sys.argv[2])
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True, help="configuration to train")
    parser.add_argument("--errors", nargs="*", default=[], metavar="CONFIG", help="configurations of the steps")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["highest", "bf16"])
    parser.add_argument("--seeds", type=not_negative, default=3, help="trainings in each precision (default: 3)")
    parser.add_argument("--batch", type=positive, default=1, help="windows of a step (default: 1)")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        for path in (args.config, *args.errors):
            configure(BackendSpec("torch"), path, args.overrides)
    except PgatError as error:
        parser.error(str(error))

    errors: dict[str, Record] = {}
    for path in args.errors:
        task = {"config": path, "overrides": args.overrides, "batch": args.batch, "precisions": args.precisions}
        errors[path] = run_task(MODULE, task, time_limit=3600)
        print(f"{path}: {errors[path].get('errors', errors[path])}", flush=True)
    trained: list[Record] = []
    for seed in range(1, args.seeds + 1):
        for precision in args.precisions:
            training = {"seed": seed, "precision": precision} | train(args.config, args.overrides, precision, seed)
            first = next((other for other in trained if other["seed"] == seed), training)
            if "rmse" in training and "rmse" in first:
                training["rmse_ratio"] = training["rmse"] / first["rmse"]
            trained.append(training)
            print(", ".join(f"{key} {value}" for key, value in training.items()), flush=True)
    write(args.json, MODULE, {"config": args.config, "errors": errors, "trained": trained})
    return 1 if any("error" in record for record in (*errors.values(), *trained)) else 0


if __name__ == "__main__":
    sys.exit(main())
