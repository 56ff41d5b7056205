"""Point metrics agree with torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics import functional

from pgat_fast.evaluation.metrics import metrics_by_target, point_metrics, skill


def test_metrics_equal_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    forecast, truth = rng.normal(size=(7, 5, 4)), rng.normal(size=(7, 5, 4))
    truth[0, 0, 0] = 0.0  # exercises the floor of percentage errors
    metrics = point_metrics(forecast, truth)
    predicted, actual = torch.tensor(forecast), torch.tensor(truth)
    expected = {
        "mae": functional.mean_absolute_error(predicted, actual),
        "mse": functional.mean_squared_error(predicted, actual),
        "rmse": functional.mean_squared_error(predicted, actual, squared=False),
        "mape": functional.mean_absolute_percentage_error(predicted, actual),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value.item(), rel=1e-6), name  # torchmetrics sums in float32
    floor = np.maximum(np.abs(truth), 1.17e-6)
    assert metrics["mspe"] == pytest.approx(float((((forecast - truth) / floor) ** 2).mean()), rel=1e-12)


def test_metrics_by_target_and_overall() -> None:
    truth = np.ones((3, 2, 2))
    table = metrics_by_target(truth + np.array([0.0, 2.0]), truth, ["open", "close"])
    assert table["open"]["mae"] == 0
    assert table["close"]["mae"] == 2
    assert table["overall"]["mae"] == 1
    assert table["overall"]["mse"] == 2


def test_skill_is_one_without_error_and_zero_at_baseline() -> None:
    assert skill(0.0, 2.0) == 1
    assert skill(2.0, 2.0) == 0
    assert skill(3.0, 2.0) == -0.5
    assert skill(1.0, 0.0) is None


def test_overflowing_metrics_are_none() -> None:
    truth = np.ones((1, 1, 1))
    assert point_metrics(truth * 1e200, truth)["mse"] is None
    assert point_metrics(truth * 1e200, truth)["mae"] == pytest.approx(1e200)
    assert set(point_metrics(truth * np.inf, truth).values()) == {None}
    assert skill(None, 1.0) is None
    assert skill(1.0, None) is None
