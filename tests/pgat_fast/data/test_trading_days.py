"""Trading days after the last row of a file, and the calendar that its dates follow."""

import numpy as np
import pandas as pd
import pytest

from pgat_fast.data.prices import sp500_prices
from pgat_fast.data.trading_days import (
    FEWEST_ROWS,
    UNSCHEDULED,
    Days,
    calendar_of,
    future_trading_days,
    nyse_holidays,
)
from pgat_fast.errors import ConfigError


def day(text: str) -> np.datetime64:
    return np.datetime64(text, "D")


def days(*texts: str) -> Days:
    return np.array(texts, dtype="datetime64[D]")


def span(first: str, last: str) -> Days:
    return np.arange(day(first), day(last) + 1)


def weekdays(first: str, last: str) -> Days:
    dates = span(first, last)
    return dates[np.is_busday(dates)]


@pytest.fixture(scope="module")
def sp500() -> Days:
    return sp500_prices().index.to_numpy().astype("datetime64[D]")


def test_nyse_rules_match_18_years_except_unscheduled_closures(sp500: Days) -> None:
    expected = weekdays("1998-01-01", "2015-12-31")
    expected = expected[np.is_busday(expected, holidays=nyse_holidays(expected[0], expected[-1]))]
    sessions = sp500[sp500 >= day("1998-01-01")]
    assert not len(np.setdiff1d(sessions, expected))
    assert np.setdiff1d(expected, sessions).tolist() == days(
        "2001-09-11", "2001-09-12", "2001-09-13", "2001-09-14",  # the attacks of September 11
        "2004-06-11",  # mourning for Ronald Reagan
        "2007-01-02",  # mourning for Gerald Ford
        "2012-10-29", "2012-10-30",  # hurricane Sandy
    ).tolist()  # fmt: skip


@pytest.mark.parametrize(
    ("holiday", "shut"),
    [
        ("2016-03-25", True),  # Good Friday
        ("2010-12-31", False),  # the Friday before a New Year's Day on a Saturday
        ("2021-12-31", False),
        ("2023-01-02", True),  # the Monday after one on a Sunday
        ("2021-06-18", False),  # Juneteenth was no holiday of the exchange yet
        ("2022-06-20", True),  # Juneteenth on a Sunday
        ("2027-06-18", True),  # on a Saturday
        ("2020-07-03", True),  # Independence Day on a Saturday
        ("2021-12-24", True),  # Christmas Day on a Saturday
        ("2022-12-26", True),  # on a Sunday
        ("1997-01-20", False),  # Martin Luther King Day before 1998
        ("1998-01-19", True),
        ("2015-10-12", False),  # Columbus Day
    ],
)
def test_nyse_holidays_match_exchange_calendar(holiday: str, shut: bool) -> None:
    assert (day(holiday) in nyse_holidays(day(holiday), day(holiday))) is shut


def test_future_trading_days_follow_calendar() -> None:
    last = days("2015-12-23", "2015-12-24")
    assert (
        future_trading_days(last, 6, "nyse").tolist()
        == days("2015-12-28", "2015-12-29", "2015-12-30", "2015-12-31", "2016-01-04", "2016-01-05").tolist()
    )
    assert future_trading_days(last, 3, "weekdays").tolist() == days("2015-12-25", "2015-12-28", "2015-12-29").tolist()
    assert future_trading_days(last, 3, "daily").tolist() == days("2015-12-25", "2015-12-26", "2015-12-27").tolist()


@pytest.mark.parametrize("last", ["2016-01-16", "2016-01-17", "2016-01-18"])
def test_future_trading_days_follow_last_row_on_weekend_or_holiday(last: str) -> None:
    assert future_trading_days(days(last), 1, "nyse")[0] == day("2016-01-19")  # the 18th is a holiday


@pytest.mark.parametrize("calendar", ["nyse", "weekdays", "daily", "auto"])
def test_future_trading_days_have_requested_count_and_increase(sp500: Days, calendar: str) -> None:
    future = future_trading_days(sp500, 600, calendar)
    assert future.shape == (600,)
    assert future.dtype == np.dtype("datetime64[D]")
    assert future[0] > sp500[-1]
    assert (np.diff(future) > np.timedelta64(0, "D")).all()


def test_future_trading_days_equal_actual_sessions(sp500: Days) -> None:
    start = int(np.searchsorted(sp500, day("2013-01-01")))
    for end in range(start, len(sp500) - 10, 25):
        assert np.array_equal(future_trading_days(sp500[:end], 10), sp500[end : end + 10])


@pytest.mark.parametrize("last", ["1975-06-02", "2002-01-04", "2005-03-01", "2012-12-31", "2015-12-31"])
def test_nyse_is_recognised_despite_unscheduled_closures(sp500: Days, last: str) -> None:
    assert calendar_of(sp500[sp500 <= day(last)]) == "nyse"


def test_nyse_requires_half_a_year_of_sessions(sp500: Days) -> None:
    assert calendar_of(sp500[-FEWEST_ROWS:]) == "nyse"
    assert calendar_of(sp500[-FEWEST_ROWS + 1 :]) == "weekdays"


def test_session_on_nyse_holiday_rules_out_nyse(sp500: Days) -> None:
    assert calendar_of(np.sort(np.append(sp500, day("2015-07-03")))) == "weekdays"


def test_too_many_gaps_rule_out_nyse(sp500: Days) -> None:
    with_gaps = np.delete(sp500, np.arange(-100, -100 + UNSCHEDULED))
    assert calendar_of(with_gaps) == "nyse"
    assert calendar_of(np.delete(with_gaps, -50)) == "weekdays"


def test_weekdays_without_holidays_are_not_nyse() -> None:
    assert calendar_of(weekdays("2013-01-01", "2015-12-31")) == "weekdays"


def test_daily_market_is_recognised_by_last_year() -> None:
    assert calendar_of(span("2014-01-01", "2015-12-31")) == "daily"
    assert calendar_of(np.concatenate([weekdays("2010-01-01", "2013-12-31"), span("2014-06-01", "2015-12-31")])) == (
        "daily"
    )


def test_exchange_of_other_weekdays_is_not_daily() -> None:
    dates = pd.bdate_range("2014-01-01", "2015-12-31", freq="C", weekmask="Sat Sun Mon Tue Wed").to_numpy()
    assert calendar_of(dates) == "Mon,Tue,Wed,Sat,Sun"


def test_single_weekend_rows_are_not_daily() -> None:
    with_weekend = np.sort(np.append(weekdays("2013-01-01", "2015-12-31"), days("2015-11-07", "2015-11-08")))
    assert calendar_of(with_weekend) == "weekdays"


@pytest.mark.parametrize("only", [["2015-12-31"], ["2015-12-26", "2015-12-27"]])
def test_calendar_of_accepts_one_or_two_rows(only: list[str]) -> None:
    assert calendar_of(days(*only)) == ("weekdays" if len(only) == 1 else "daily")


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ConfigError, match=r"data\.trading_days is 'lse': choose auto, nyse, weekdays, daily"):
        future_trading_days(days("2015-12-31"), 1, "lse")
    with pytest.raises(ValueError, match="at least one of each"):
        future_trading_days(days("2015-12-31"), 0)
    with pytest.raises(ValueError, match="at least one of each"):
        future_trading_days(days(), 1)
