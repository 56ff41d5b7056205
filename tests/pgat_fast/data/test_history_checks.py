"""Rows that contradict a daily calendar are refused, probable faults of the source are warnings with their date."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pgat_fast import load_config
from pgat_fast.data.build import build_file
from pgat_fast.data.history_checks import checked_calendar, examine
from pgat_fast.data.load import examine_table, load_splits
from pgat_fast.data.metadata import read_note
from pgat_fast.data.prices import sp500_prices
from pgat_fast.data.row_spacing import Days, spacing_of
from pgat_fast.data.table import read_table
from pgat_fast.data.trading_days import calendar_of, future_trading_days, nyse_holidays
from pgat_fast.errors import DataError

SUNDAY_TO_THURSDAY = "Mon,Tue,Wed,Thu,Sun"


def span(first: str, last: str, weekmask: str = "1111111") -> Days:
    days = np.arange(np.datetime64(first), np.datetime64(last))
    return days[np.is_busday(days, weekmask=weekmask)]


def range_of(freq: str, periods: int = 60) -> Days:
    return pd.date_range("2018-01-01", periods=periods, freq=freq).to_numpy().astype("datetime64[D]")


def sessions() -> Days:
    """Return three years of sessions of the New York Stock Exchange."""
    days = span("2016-01-01", "2019-01-01")
    return days[np.is_busday(days, holidays=nyse_holidays(days[0], days[-1]))]


def random_walk(rows: int) -> np.ndarray:
    """Return log prices of open, high, low, close with changes of 1 %."""
    random = np.random.default_rng(6)
    closes = np.cumsum(random.normal(0, 0.01, rows))
    opens = np.r_[0, closes[:-1]]
    return np.stack([opens, np.maximum(opens, closes) + 0.001, np.minimum(opens, closes) - 0.001, closes], axis=1)


fridays = range_of("W-FRI")
with_thursday = np.where(np.arange(60) % 20 == 15, fridays - 1, fridays)

SPACINGS = {
    "weekly": [
        range_of("W-MON"), range_of("W-SUN"), fridays, np.delete(fridays, [4, 30, 31]), with_thursday,
        np.append(fridays, fridays[-1] + 3), range_of("W-WED", 5),
    ],
    "monthly": [
        range_of("MS"), range_of("ME"), range_of("BMS"), range_of("BME"), np.delete(range_of("MS"), [9, 20]),
        range_of("MS") + 14,
    ],
    "quarterly": [range_of("QE"), range_of("QS")],
    "two-weekly": [range_of("14D")],
    "yearly": [range_of("YE", 20)],
    "irregular": [range_of("2D"), range_of("4D"), range_of("50D"), span("2018-01-01", "2018-06-01", "Mon Wed Fri")],
    "daily": [
        sessions(), sessions()[:6], range_of("D"), span("2018-01-01", "2018-06-01", "Sun Mon Tue Wed Thu"),
        span("2015-12-31", "2016-01-06", "1111100"), fridays[:3],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("spacing", "number"), [(name, i) for name, items in SPACINGS.items() for i in range(len(items))]
)
def test_spacing_is_recognised_despite_single_gaps(spacing: str, number: int) -> None:
    dates = SPACINGS[spacing][number]
    assert spacing_of(dates) == spacing
    refusal = examine(dates).refusal
    assert bool(refusal) == (spacing != "daily")
    if refusal:
        assert str(dates[0]) in refusal
        assert spacing == "irregular" or f"the rows are {spacing}, not daily" in refusal


@pytest.mark.parametrize(
    ("dates", "calendar", "expected"),
    [
        (fridays[fridays < np.datetime64("2018-03-10")], "weekly", ["2018-03-16", "2018-03-23"]),
        (with_thursday[:16], "weekly", [str(fridays[16]), str(fridays[17])]),
        (np.append(fridays[:8], fridays[7] + 5), "weekly", [str(fridays[9]), str(fridays[10])]),
        (range_of("MS", 13), "monthly", ["2019-02-01", "2019-03-01"]),
        (range_of("ME", 12), "monthly", ["2019-01-31", "2019-02-28"]),
        (range_of("BME", 10), "monthly", ["2018-11-30", "2018-12-31"]),
        (range_of("BMS", 8), "monthly", ["2018-09-03", "2018-10-01"]),
        (range_of("MS", 12) + 14, "monthly", ["2019-01-15", "2019-02-15"]),
        (np.append(range_of("MS", 12), np.datetime64("2018-12-20")), "monthly", ["2019-01-01", "2019-02-01"]),
        (span("2018-01-01", "2018-03-02", "Sun Mon Tue Wed Thu"), "auto", ["2018-03-04", "2018-03-05"]),
        (span("2018-01-01", "2018-03-02"), "sun, mon tue,WED,Thursday", ["2018-03-04", "2018-03-05"]),
        (span("2018-01-01", "2018-03-03", "1111101"), "auto", ["2018-03-04", "2018-03-05"]),
    ],
)
def test_forecast_days_follow_weeks_months_and_learned_weekdays(
    dates: Days, calendar: str, expected: list[str]
) -> None:
    assert future_trading_days(dates, 2, calendar).astype(str).tolist() == expected


def test_dates_a_day_off_are_refused() -> None:
    early = examine(sessions() - 1).refusal
    assert "a day early" in early
    assert "New York Stock Exchange" in early
    assert "--trading-days Sun,Mon,Tue,Wed,Thu" in early
    assert "a day late" in examine(sessions() + 1).refusal
    closed = np.array(["2016-12-26", "2017-12-25", "2018-12-25", "2018-01-01"], dtype="datetime64[D]")
    assert "2017-12-25" in examine(np.setdiff1d(span("2016-01-04", "2019-01-01", "1111100"), closed) - 1).refusal


def test_exchange_open_from_sunday_to_thursday_is_followed_with_a_warning() -> None:
    dates = span("2016-01-01", "2019-01-01", "Sun Mon Tue Wed Thu")
    findings = examine(dates)
    assert findings.calendar == SUNDAY_TO_THURSDAY
    assert not findings.refusal
    assert "Sundays to Thursdays" in findings.warnings[0]
    assert examine(dates, calendar=SUNDAY_TO_THURSDAY).warnings == ()


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (span("2017-01-01", "2019-01-01", "1111101"), "rows of the last year are on Sundays beside Mondays to Fridays"),
        (span("2017-01-01", "2019-01-01", "1111110"), "few or no rows on Sundays"),
        (np.sort(np.r_[span("2017-01-01", "2019-01-01", "1111100"), range_of("W-SUN", 40)[::3]]), "on Sundays ("),
        (np.delete(sessions(), np.s_[100:160]), "a gap of"),
    ],
)
def test_unusual_rows_are_warnings(dates: Days, words: str) -> None:
    findings = examine(dates)
    assert not findings.refusal
    assert len(findings.warnings) == 1
    assert words in findings.warnings[0]


@pytest.mark.parametrize(
    "dates", [sessions(), span("2017-01-01", "2019-01-01"), span("2017-01-01", "2019-01-01", "1111100")]
)
def test_usual_calendars_are_quiet(dates: Days) -> None:
    assert examine(dates, random_walk(len(dates)))[1:] == ("", ())


def test_rows_and_calendar_must_agree() -> None:
    assert "the calendar is weekly, but the rows are daily" in examine(sessions(), calendar="weekly").refusal
    assert "the rows are monthly" in examine(range_of("MS"), calendar="weekly").refusal
    assert "the rows are weekly" in examine(fridays, calendar="nyse").refusal
    assert examine(fridays, calendar="weekly")[1:] == ("", ())
    mixed = np.r_[range_of("W-MON", 20), span("2018-06-01", "2019-01-01", "1111100")]
    assert "20 rows from 2018-01-01" in examine(mixed).refusal


@pytest.mark.parametrize("factor", [2, 3, 10, 20, 1 / 2, 1 / 10, 100])
def test_unadjusted_split_is_a_warning_with_its_date(factor: float) -> None:
    dates, logs = sessions()[:200], random_walk(200)
    logs[120:] -= np.log(factor)
    (warning,) = examine(dates, logs).warnings
    assert f"from {dates[119]} to {dates[120]}" in warning
    whole = factor if factor > 1 else 1 / factor
    assert f"(about {'1/' if factor > 1 else ''}{whole:.0f})" in warning


def test_jump_that_its_surroundings_explain_is_no_warning() -> None:
    random = np.random.default_rng(5)
    logs = np.repeat(np.cumsum(random.normal(0, 0.3, 300))[:, None], 4, axis=1) + np.array([0, 0.1, -0.1, 0])
    assert np.abs(np.diff(logs[:, 3])).max() > np.log(2)
    assert examine(span("2018-01-01", "2018-10-28"), logs).warnings == ()


def test_prices_that_do_not_vary_are_warnings() -> None:
    dates, logs = sessions()[:300], random_walk(300)
    constant, flat, repeated = logs.copy(), logs.copy(), logs.copy()
    constant[100:115, 3] = 0.01
    flat[:, :3] = flat[:, 3:]
    repeated[201::10] = repeated[200:299:10]
    for values, words in ((constant, f"the close does not vary over 15 rows, {dates[100]}"), (flat, "are equal in 250"),
                          (repeated, "of the last 250 rows repeat the prices of the row before")):  # fmt: skip
        (warning,) = examine(dates, values).warnings
        assert words in warning


def test_sp500_is_quiet_and_its_flat_years_are_one_line() -> None:
    prices = sp500_prices()
    dates, logs = prices.index.to_numpy().astype("datetime64[D]"), np.log(prices.to_numpy())
    assert examine(dates, logs) == ("nyse", "", ())
    assert len(examine(dates[:2000], logs[:2000]).warnings) == 1


def test_strict_refuses_warnings(caplog: pytest.LogCaptureFixture) -> None:
    dates = np.delete(sessions(), np.s_[100:160])
    assert checked_calendar("mine", dates) == "nyse"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with pytest.raises(DataError, match="mine: refused because of --strict: a gap of"):
        checked_calendar("mine", dates, strict=True)


def test_build_check_and_training_decide_alike(tiny: list[str], tmp_path: Path) -> None:
    logs = random_walk(60) + 4
    prices = pd.DataFrame(np.exp(logs), index=pd.DatetimeIndex(fridays), columns=["open", "high", "low", "close"])
    with pytest.raises(DataError, match="the rows are weekly"):
        build_file(tmp_path / "weekly.csv", prices)
    path = build_file(tmp_path / "weekly.csv", prices, trading_days="weekly").path
    table = read_table(path)
    note = read_note(table)
    assert note is not None
    assert note.trading_days == "weekly"
    config = load_config(None, [*tiny, f"data.path={path}"])
    load_splits(config.data, config.model, torch.device("cpu"))  # the note states the calendar
    path.with_name("weekly.csv.note.json").unlink()
    assert "the rows are weekly" in examine_table(table, read_note(table), config.data).refusal
    with pytest.raises(DataError, match="the rows are weekly"):
        load_splits(config.data, config.model, torch.device("cpu"))
    weekly = load_config(None, [*tiny, f"data.path={path}", "data.trading_days=weekly"])
    load_splits(weekly.data, weekly.model, torch.device("cpu"))


def test_calendar_of_learns_weekdays_from_three_weeks() -> None:
    dates = span("2018-01-01", "2018-03-01", "Sun Mon Tue Wed Thu")
    assert calendar_of(dates) == SUNDAY_TO_THURSDAY
    assert calendar_of(dates[:14]) == "weekdays"
