"""Robustness to perturbed inputs: five scenarios, each compared with the forecasts of the clean inputs."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgat_fast.data.windows import Windows
from pgat_fast.errors import PgatError
from pgat_fast.evaluation.metrics import Metrics, metrics_by_target
from pgat_fast.evaluation.split_forecasts import SplitForecast, evaluate_split

logger = logging.getLogger(__name__)

NOISE = 0.05
SCALE = 1.25
DROPOUT = 0.1


class Draws:
    """Random numbers for the windows of a batch that depend only on the seed, the scenario and the window.

    They are the same for every batch size, and no global random generator is advanced.
    """

    def __init__(self, seed: int, scenario: int, windows: Tensor) -> None:
        self.windows, self.device = windows.tolist(), windows.device
        self.seed, self.scenario = seed, scenario

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal values, float32 [B, *shape]."""
        return self._stack(lambda generator: generator.standard_normal(shape))

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform values on [0, 1), float32 [B, *shape]."""
        return self._stack(lambda generator: generator.random(shape))

    def _stack(self, draw: Callable[[np.random.Generator], Any]) -> Tensor:
        drawn = [draw(np.random.default_rng([self.seed, self.scenario, window])) for window in self.windows]
        return torch.from_numpy(np.stack(drawn).astype(np.float32)).to(self.device)


Scenario = tuple[str, Callable[[Tensor, Draws], Tensor]]
"""Description, and the function that returns the perturbed history for the scaled x_enc [B, S, F]."""

SCENARIOS: dict[str, Scenario] = {
    "gaussian_noise": (
        f"normal noise of standard deviation {NOISE} on every scaled input",
        lambda x, draws: x + NOISE * draws.normal(*x.shape[1:]),
    ),
    "zero_input": ("every scaled input is 0", lambda x, draws: torch.zeros_like(x)),
    "scale": (f"all scaled inputs times {SCALE}", lambda x, draws: SCALE * x),
    "time_reversal": ("the days of the history in reverse order", lambda x, draws: x.flip(1)),
    "feature_dropout": (
        f"each scaled input of a window is 0 on all days with probability {DROPOUT}",
        lambda x, draws: x * (draws.uniform(1, x.shape[2]) >= DROPOUT),
    ),
}


def run_adversarial(
    model: nn.Module,
    windows: Windows,
    mixture_mode: str,
    targets: Sequence[str],
    *,
    seed: int,
    clean: SplitForecast,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Forecast `windows` in every scenario and compare with `clean`, the forecasts of the unchanged inputs.

    A scenario changes the history of both the encoder and the decoder. The calendar and the covariates known for the
    forecast days stay unchanged. The truth is the same in all scenarios.

    Returns:
        `{"seed": ..., "scenarios": {name: {...}}}`. Each scenario has a `status`, `ok` or `failed`, its `metrics`
        (scaled, overall and by target), `change` (its MAE, MSE and RMSE minus the clean ones, and `ratio`, the RMSE
        divided by the clean one) and `shift`, the RMSE between its forecasts and the clean ones. A scenario that raises
        an error or gives non-finite forecasts is `failed`, with the reason in `error`; the others still run.
        A PgatError, such as that of a memory limit in `on_batch`, is not caught.
    """
    reference = metrics_by_target(clean.forecast, clean.truth, targets)["overall"]
    scenarios: dict[str, Any] = {}
    for number, (name, (description, perturb)) in enumerate(SCENARIOS.items()):
        entry: dict[str, Any] = {
            "status": "failed", "description": description, "metrics": None, "change": None, "shift": None,
            "finite": False, "error": None,
        }  # fmt: skip
        change = partial(_perturb, perturb, seed, number)
        try:
            perturbed = evaluate_split(model, windows, mixture_mode, on_batch=on_batch, change=change)
        except PgatError:
            raise
        except Exception as error:  # reported below: a failing diagnostic must not end the run
            entry["error"] = f"{type(error).__name__}: {error}"
        else:
            metrics = metrics_by_target(perturbed.forecast, perturbed.truth, targets)
            entry["finite"] = metrics["overall"]["rmse"] is not None
            if entry["finite"]:
                entry |= {"status": "ok", "metrics": metrics, "change": _change(metrics["overall"], reference)}
                entry["shift"] = float(np.sqrt(np.mean((perturbed.forecast - clean.forecast) ** 2)))
            else:
                entry["error"] = "the forecasts are not finite"
        if entry["error"] is not None:
            logger.warning("adversarial scenario %s failed: %s", name, entry["error"])
        scenarios[name] = entry
    return {"seed": seed, "scenarios": scenarios}


def _perturb(
    perturb: Callable[[Tensor, Draws], Tensor], seed: int, scenario: int, x_enc: Tensor, windows: Tensor
) -> Tensor:
    return perturb(x_enc, Draws(seed, scenario, windows))


def _change(changed: Metrics, clean: Metrics) -> dict[str, float | None]:
    """Return MAE, MSE and RMSE minus the clean ones, and the `ratio` of the RMSEs.

    Values that are unknown are None, and so is the ratio if the clean RMSE is 0.
    """
    change: dict[str, float | None] = {}
    for measure in ("mae", "mse", "rmse"):
        error, clean_error = changed[measure], clean[measure]
        change[measure] = None if error is None or clean_error is None else error - clean_error
    rmse, clean_error = changed["rmse"], clean["rmse"]
    return change | {"ratio": rmse / clean_error if rmse is not None and clean_error else None}
