"""Every scenario changes the history as described, and a failing scenario does not end the run."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.data.windows import Windows
from pgat_fast.errors import MemoryLimitError, StopRequested
from pgat_fast.evaluation import split_forecasts
from pgat_fast.evaluation.adversarial import SCENARIOS, Draws, run_adversarial
from pgat_fast.evaluation.split_forecasts import SplitForecast, evaluate_split

NAMES = ["gaussian_noise", "zero_input", "scale", "time_reversal", "feature_dropout"]
S, L, P, F, COUNT = 8, 3, 2, 40, 30


def make_windows() -> Windows:
    """Return 30 windows with 40 inputs, the first ten of which are known ahead, and two targets."""
    generator = torch.Generator().manual_seed(1)
    rows = S + P + COUNT - 1
    return Windows(
        torch.randn(rows, F, generator=generator),
        torch.randn(rows, 3, generator=generator),
        torch.randn(rows, 2, generator=generator),
        seq_len=S,
        label_len=L,
        pred_len=P,
        known_ahead=torch.arange(F) < 10,
    )


class Recorder(nn.Module):
    """Model that forecasts the first two inputs of the last day and records its inputs."""

    def __init__(self, forecast: Callable[[Tensor], Tensor] = lambda x: x[:, -1:, :2].expand(-1, P, -1)) -> None:
        super().__init__()
        self.forecast, self.given = forecast, []

    def forward(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.given.append([part.clone() for part in batch])
        return self.forecast(batch[0]), {"adjacency": torch.zeros(len(batch[0]), S, 4, 4)}

    def take(self) -> list[Tensor]:
        """Return the concatenated inputs recorded since the last call, and clear them."""
        parts = [torch.cat(part) for part in zip(*self.given, strict=True)]
        self.given.clear()
        return parts


def clean_of(windows: Windows) -> SplitForecast:
    return evaluate_split(Recorder(), windows, "independent")


def inputs_of(windows: Windows, batch_size: int = 7, seed: int = 5) -> dict[str, list[Tensor]]:
    """Return the inputs of the model in each scenario."""
    model, clean = Recorder(), clean_of(windows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_forecasts, "EVALUATION_BATCH", batch_size)
        run_adversarial(model, windows, "independent", ["a", "b"], seed=seed, clean=clean)
    batches = -(-COUNT // batch_size)
    assert len(model.given) == batches * len(SCENARIOS)
    recorded, inputs = model.given, {}
    for number, name in enumerate(SCENARIOS):
        model.given = recorded[number * batches : (number + 1) * batches]
        inputs[name] = model.take()
    return inputs


def test_scenarios_change_history_as_described() -> None:
    windows = make_windows()
    clean = windows.batch(torch.arange(COUNT))
    inputs = inputs_of(windows)
    assert list(inputs) == NAMES
    x = clean.x_enc
    noise = inputs["gaussian_noise"][0] - x
    # Standard errors of 0.0005 and 0.0004 with 9,600 draws.
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noise.std().item() == pytest.approx(0.05, abs=0.0016)
    assert len({noise[window, 0, 0].item() for window in range(COUNT)}) == COUNT, "every window has its own"
    assert not inputs["zero_input"][0].any()
    assert torch.equal(inputs["scale"][0], 1.25 * x)
    for day in range(S):
        assert torch.equal(inputs["time_reversal"][0][:, day], x[:, S - 1 - day])
    kept = inputs["feature_dropout"][0] == x
    dropped = inputs["feature_dropout"][0] == 0
    assert (kept | dropped).all()
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1)), "a feature is dropped on all days of a window or none"
    # Standard error of 0.0087 with 1,200 draws.
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.1, abs=0.035)


def test_decoder_receives_changed_history_and_unchanged_future() -> None:
    windows = make_windows()
    clean = windows.batch(torch.arange(COUNT))
    assert clean.x_dec[:, L:, :10].all()
    for x_enc, x_mark_enc, x_dec, x_mark_dec in inputs_of(windows).values():
        assert torch.equal(x_dec[:, :L], x_enc[:, S - L :])
        assert torch.equal(x_dec[:, L:], clean.x_dec[:, L:])
        assert torch.equal(x_mark_enc, clean.x_mark_enc)
        assert torch.equal(x_mark_dec, clean.x_mark_dec)
    assert torch.equal(windows.batch(torch.arange(COUNT)).x_enc, clean.x_enc), "the windows themselves do not change"


def test_draws_depend_on_seed_and_window_but_not_batch_size() -> None:
    windows = make_windows()
    batch_of_7, batch_of_1, other_seed = (
        inputs_of(windows),
        inputs_of(windows, batch_size=1),
        inputs_of(windows, seed=6),
    )
    for name in NAMES:
        assert torch.equal(batch_of_7[name][0], batch_of_1[name][0])
        assert torch.equal(batch_of_7[name][0], other_seed[name][0]) == (
            name not in ("gaussian_noise", "feature_dropout")
        )


def test_draws_differ_between_scenarios() -> None:
    first, second = (Draws(5, scenario, torch.arange(2)) for scenario in (0, 1))
    assert not torch.equal(first.normal(3), second.normal(3))
    assert torch.equal(first.normal(3), first.normal(3)), "whatever was drawn before"


def test_global_generators_are_not_advanced(tiny: list[str]) -> None:
    config = load_config(None, tiny)
    _, splits = load_splits(config.data, config.model, torch.device("cpu"))
    model = build_model(config)
    clean = evaluate_split(model, splits.test, "independent")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    report = run_adversarial(model, splits.test, "independent", "abcd", seed=1, clean=clean)
    assert [scenario["status"] for scenario in report["scenarios"].values()] == ["ok"] * 5
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_errors_are_compared_with_clean_errors() -> None:
    windows = make_windows()
    clean = clean_of(windows)
    report = run_adversarial(Recorder(), windows, "independent", ["a", "b"], seed=5, clean=clean)
    assert report["seed"] == 5
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    clean_rmse = np.sqrt(np.mean((clean.forecast - clean.truth) ** 2))
    for name, forecast in (("zero_input", 0 * clean.forecast), ("scale", 1.25 * clean.forecast)):
        scenario = report["scenarios"][name]
        error = forecast - clean.truth
        rmse = np.sqrt(np.mean(error**2))
        assert scenario["status"] == "ok"
        assert scenario["finite"]
        assert scenario["error"] is None
        # The model computes in float32.
        assert scenario["metrics"]["overall"]["rmse"] == pytest.approx(rmse, rel=1e-6)
        assert scenario["metrics"]["b"]["mae"] == pytest.approx(np.abs(error[..., 1]).mean(), rel=1e-6)
        assert scenario["change"]["rmse"] == pytest.approx(rmse - clean_rmse, rel=1e-5)
        assert scenario["change"]["ratio"] == pytest.approx(rmse / clean_rmse, rel=1e-6)
        mae = np.abs(error).mean() - np.abs(clean.forecast - clean.truth).mean()
        assert scenario["change"]["mae"] == pytest.approx(mae, rel=1e-5)
        assert scenario["change"]["mse"] == pytest.approx(rmse**2 - clean_rmse**2, rel=1e-5)
        assert scenario["shift"] == pytest.approx(np.sqrt(np.mean((forecast - clean.forecast) ** 2)), rel=1e-6)


def test_ratio_is_none_if_clean_error_is_zero() -> None:
    windows = make_windows()
    clean = clean_of(windows)
    perfect = SplitForecast(clean.truth, clean.truth, 0.0, None, clean.adjacency)
    report = run_adversarial(Recorder(), windows, "independent", ["a", "b"], seed=5, clean=perfect)
    assert report["scenarios"]["scale"]["change"]["ratio"] is None
    assert report["scenarios"]["scale"]["change"]["mae"] > 0


def fails_on_zeros(failure: Callable[[Tensor], Tensor]) -> Recorder:
    """Return a model that calls `failure` if and only if all inputs are zero."""

    def forecast(x: Tensor) -> Tensor:
        y = x[:, -1:, :2].expand(-1, P, -1)
        return y if x.any() else failure(y)

    return Recorder(forecast)


def out_of_memory(y: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory(y: Tensor) -> Tensor:
    raise MemoryError


def nothing_fits(y: Tensor) -> Tensor:
    raise ValueError("row 3")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (lambda y: y / 0, "the forecasts are not finite"),
        (lambda y: y + math.inf, "the forecasts are not finite"),
        (nothing_fits, "ValueError: row 3"),
        (out_of_memory, "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        (no_memory, "MemoryError: "),
    ],
)
def test_failed_scenario_reports_reason_and_others_run(
    failure: Callable[[Tensor], Tensor], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    windows = make_windows()
    scenarios = run_adversarial(
        fails_on_zeros(failure), windows, "independent", ["a", "b"], seed=5, clean=clean_of(windows)
    )["scenarios"]
    assert list(scenarios) == NAMES
    failed = scenarios.pop("zero_input")
    assert failed == {
        "status": "failed", "description": SCENARIOS["zero_input"][0], "metrics": None, "change": None, "shift": None,
        "finite": False, "error": error,
    }  # fmt: skip
    assert all(scenario["status"] == "ok" for scenario in scenarios.values())
    assert f"adversarial scenario zero_input failed: {error}" in caplog.text


@pytest.mark.parametrize("error", [StopRequested("SIGTERM"), MemoryLimitError("over the limit")])
def test_stop_request_and_memory_limit_are_not_caught(error: BaseException) -> None:
    windows = make_windows()

    def stop() -> None:
        raise error

    with pytest.raises(type(error)):
        run_adversarial(Recorder(), windows, "independent", ["a", "b"], seed=5, clean=clean_of(windows), on_batch=stop)
