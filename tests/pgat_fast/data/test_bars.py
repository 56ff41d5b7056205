"""Rounding noise in the order of prices is mended everywhere, an error nowhere."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pgat_fast.data.bars import BAR_TOLERANCE, FLOAT32_NOISE, mend_bars, tell_apart
from pgat_fast.data.build import build_file
from pgat_fast.data.price_frames import prices_from_frame
from pgat_fast.data.prices import Remarks, read_prices
from pgat_fast.data.table import read_table
from pgat_fast.errors import DataError
from tests.pgat_fast.data.small_file import good_rows, write


def bars(high_by: float = 0.0, low_by: float = 0.0, price: float = 100.0) -> np.ndarray:
    """Return three bars; the high of the second is below its close, the low above its open, by these shares."""
    values = np.array([[0.99, 1.02, 0.97, 1.0], [0.99, 1.0, 0.99, 1.0], [0.99, 1.02, 0.97, 1.0]]) * price
    values[1, 1] *= 1 - high_by
    values[1, 2] *= 1 + low_by
    return values


@pytest.mark.parametrize("noise", [1.2e-16, 1e-7, 2.4e-7, 1e-6])
def test_noise_is_clipped_and_counted(noise: float) -> None:
    original = bars(noise, noise)
    mended = mend_bars(original)
    assert mended.bars[1].tolist() == [99, 100, 99, 100]
    assert original[1, 1] < 100  # not in place
    assert mended.rows.tolist() == [1]
    assert mended.largest == pytest.approx(noise, rel=0.3)
    assert not len(mended.high_faults)


def test_error_is_not_clipped() -> None:
    original = bars(2e-6, 2e-6)
    mended = mend_bars(original)
    assert mended.bars is original
    assert (mended.high_faults.tolist(), mended.low_faults.tolist()) == ([1], [1])


def test_tolerance_is_the_same_for_log_prices() -> None:
    assert not len(mend_bars(np.log(bars(1e-6)), logs=True).high_faults)
    assert len(mend_bars(np.log(bars(2e-6)), logs=True).high_faults)


@pytest.mark.parametrize("price", [0.01, 1.0, 5000.0])
def test_wrong_cent_is_refused_up_to_a_price_of_5000(price: float) -> None:
    assert 0.01 / price > BAR_TOLERANCE
    assert len(mend_bars(bars(0.01 / price, price=price)).high_faults)


def test_products_in_float32_are_within_tolerance() -> None:
    random = np.random.default_rng(3)
    close, adjusted = random.uniform(1, 5000, (2, 10_000)).astype(np.float32)
    noise = np.abs(close * (adjusted / close) - adjusted) / adjusted
    assert 0 < noise.max() <= FLOAT32_NOISE


def test_prices_rounded_to_cents_keep_their_order() -> None:
    random = np.random.default_rng(4)
    values = np.sort(random.uniform(0.5, 5000, (1000, 4)), axis=1)[:, [1, 3, 0, 2]]
    rounded = np.round(values, 2)
    assert mend_bars(rounded).bars is rounded


def test_all_readers_mend_noise_in_one_line(tmp_path: Path) -> None:
    days = pd.DatetimeIndex(["2024-01-02", "2024-01-03", "2024-01-04"], name="date")
    frame = pd.DataFrame(bars(1e-16, 1e-7), index=days, columns=["open", "high", "low", "close"])
    frame.to_csv(tmp_path / "prices.csv", float_format="%.17g")
    for read in (lambda remarks: read_prices(tmp_path / "prices.csv", None, remarks),
                 lambda remarks: prices_from_frame(frame, remarks=remarks)):  # fmt: skip
        remarks = Remarks()
        prices = read(remarks)
        assert prices.iloc[1].tolist() == [99, 100, 99, 100]
        assert [line.split(": ", 1)[1][:43] for line in remarks.notes] == [
            "rounding noise of at most 1.0e-07 of the pr"
        ]
        assert not remarks.warnings


def test_noise_above_float32_is_a_warning() -> None:
    days = pd.DatetimeIndex(["2024-01-02", "2024-01-03", "2024-01-04"])
    remarks = Remarks()
    prices_from_frame(pd.DataFrame(bars(5e-7), index=days, columns=["open", "high", "low", "close"]), remarks=remarks)
    assert "1 row (first 2024-01-03)" in remarks.warnings[0]
    assert not remarks.notes


def high_of(path: Path) -> float:
    return float(read_table(path).select(["log_High"])[3, 0])


def test_data_file_is_mended_unless_its_prices_are_out_of_order(tmp_path: Path) -> None:
    rows = good_rows()
    top = max(float(rows[4][column]) for column in (1, 3, 4))
    rows[4][2] = repr(top - 1e-6)
    assert high_of(write(tmp_path / "noise.csv", rows)) == top
    rows[9][2] = "-0.5"
    assert high_of(write(tmp_path / "fault.csv", rows)) == top - 1e-6


def test_message_has_as_many_digits_as_tell_prices_apart() -> None:
    assert tell_apart(np.array([94.2776032, 94.27760319999999])) == ["94.2776032", "94.27760319999999"]
    assert tell_apart(np.array([1.5, 1.5])) == ["1.5", "1.5"]


def test_strict_build_refuses_warnings_of_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("date,open,high,low,close\n2024-01-02,10,12,9,11\n2024-01-03,10,11.9999940,9,12")
    with pytest.raises(DataError, match="--strict"):
        build_file(tmp_path / "out.csv", path, strict=True)
    assert not (tmp_path / "out.csv").exists()
