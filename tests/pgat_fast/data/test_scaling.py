"""Columns are scaled by the mean and deviation they were fitted on; angles are unchanged."""

import json
import logging

import numpy as np
import pytest

from pgat_fast.data.scaling import Scaler
from pgat_fast.errors import DataError

COLUMNS = ("price", "Moon_sin", "Moon_cos", "dyn_Sun_sign_sin", "speed")


def training_rows() -> np.ndarray:
    return np.random.default_rng(3).normal(5.0, [0.01, 0.5, 0.5, 0.5, 100.0], size=(500, 5))


def test_scaled_training_rows_have_mean_zero_and_population_deviation_one() -> None:
    scaled = Scaler.fit(training_rows(), COLUMNS).transform(training_rows())
    for column in (0, 4):
        # Float64 loses about eps * mean / std = 2e-16 * 500 = 1e-13 of the mean.
        assert abs(scaled[:, column].mean()) < 1e-12
        assert abs(np.sqrt((scaled[:, column] ** 2).mean()) - 1) < 1e-12


def test_sines_and_cosines_are_unchanged() -> None:
    scaler = Scaler.fit(training_rows(), COLUMNS)
    assert scaler.mean[1:4].tolist() == [0, 0, 0]
    assert scaler.std[1:4].tolist() == [1, 1, 1]
    assert np.array_equal(scaler.transform(training_rows())[:, 1:4], training_rows()[:, 1:4])


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5)])
def test_inverse_undoes_transform_for_any_leading_axes(shape: tuple[int, ...]) -> None:
    scaler = Scaler.fit(training_rows(), COLUMNS)
    values = np.random.default_rng(4).normal(size=shape)
    # Two roundings at the size of the mean, 5.
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9 / 3, 1e-300])
def test_constant_column_becomes_zero_and_is_logged(value: float, caplog: pytest.LogCaptureFixture) -> None:
    rows = training_rows()
    rows[:, 4] = value
    with caplog.at_level(logging.WARNING):
        scaler = Scaler.fit(rows, COLUMNS)
    assert scaler.std[4] == 1.0
    # The mean of 500 equal values may be off by their roundings.
    np.testing.assert_allclose(scaler.transform(rows)[:, 4], 0.0, atol=1e-13 * max(1.0, abs(value)))
    assert caplog.text.count("speed") == 1
    assert "price" not in caplog.text


def test_small_variation_of_large_value_is_not_constant() -> None:
    values = 1e6 + 1e-3 * np.random.default_rng(5).normal(size=(7000, 1))
    assert Scaler.fit(values, ["a"]).std[0] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_column_without_finite_mean_and_deviation_raises(value: float) -> None:
    rows = training_rows()
    rows[3, 4] = value
    with pytest.raises(DataError, match="column speed"):
        Scaler.fit(rows, COLUMNS)


@pytest.mark.parametrize("shape", [(0, 5), (3, 4), (5,)])
def test_rows_that_do_not_fit_columns_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\[n, 5\\]"):
        Scaler.fit(np.zeros(shape), COLUMNS)


def test_json_round_trip_is_bit_exact() -> None:
    scaler = Scaler.fit(training_rows(), COLUMNS)
    restored = Scaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    assert restored.columns == scaler.columns
    assert np.array_equal(restored.mean, scaler.mean)
    assert np.array_equal(restored.std, scaler.std)
    assert {type(value) for key in ("mean", "std") for value in scaler.to_dict()[key]} == {float}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": None}, "2 columns"),
        ({"mean": ["x", "y"]}, "no stored scaler"),
        ({"mean": [1.0]}, "2 columns"),
        ({"std": [1.0, 0.0]}, "not positive"),
        ({"std": [1.0, float("nan")]}, "not positive"),
        ({"mean": [1.0, float("inf")]}, "not finite"),
        ({"columns": 5}, "no stored scaler"),
    ],
)
def test_invalid_scaler_state_raises(change: dict[str, object], words: str) -> None:
    state = {"columns": ["a", "b"], "mean": [0.0, 1.0], "std": [1.0, 2.0]}
    assert Scaler.from_dict(state).columns == ("a", "b")
    with pytest.raises(DataError, match=words):
        Scaler.from_dict(state | change)


@pytest.mark.parametrize("key", ["columns", "mean", "std"])
def test_incomplete_scaler_state_raises(key: str) -> None:
    state = {"columns": ["a"], "mean": [0.0], "std": [1.0]}
    del state[key]
    with pytest.raises(DataError, match=key):
        Scaler.from_dict(state)
