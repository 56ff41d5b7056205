"""The table of forecasts and its CSV form."""

import numpy as np

from pgat_fast.evaluation.assessment import forecast_table

DATES = np.array(["2024-05-02", "2024-05-03", "2024-05-06", "2024-05-07"], dtype="datetime64[D]")
ROWS = np.array([0, 1])
TARGETS = ("log_Open", "log_Close")
LEVELS = (0.5, 0.95)
FORECAST = np.arange(8.0).reshape(2, 2, 2)
COLUMNS = ["origin", "date", "horizon", "target", "forecast", "truth", "price_forecast", "price_truth"]
COLUMNS += ["price_lower_50", "price_upper_50", "price_lower_95", "price_upper_95"]


def test_table_has_row_for_each_window_day_and_target() -> None:
    prices = 100 + FORECAST
    lower, upper = (np.stack([prices + sign, prices + 2 * sign]) for sign in (-1, 1))
    table = forecast_table(DATES, ROWS, TARGETS, FORECAST, -FORECAST, (prices, prices + 0.5, (lower, upper)), LEVELS)
    assert table.columns.tolist() == COLUMNS
    lines = table.to_csv(index=False).splitlines()
    assert lines[1] == "2024-05-02,2024-05-03,1,log_Open,0.0,-0.0,100.0,100.5,99.0,101.0,98.0,102.0"
    assert lines[4] == "2024-05-02,2024-05-06,2,log_Close,3.0,-3.0,103.0,103.5,102.0,104.0,101.0,105.0"
    assert lines[8] == "2024-05-03,2024-05-07,2,log_Close,7.0,-7.0,107.0,107.5,106.0,108.0,105.0,109.0"
    assert len(lines) == 9


def test_price_cells_are_empty_without_prices() -> None:
    table = forecast_table(DATES, ROWS, TARGETS, FORECAST, FORECAST, None, LEVELS)
    assert table.columns.tolist() == COLUMNS
    assert table.to_csv(index=False).splitlines()[1] == "2024-05-02,2024-05-03,1,log_Open,0.0,0.0,,,,,,"


def test_unknown_intervals_are_empty() -> None:
    unknown = np.full((2, 2, 2, 2), np.nan)
    unknown[0] = 1.0
    table = forecast_table(DATES, ROWS, TARGETS, FORECAST, FORECAST, (FORECAST, FORECAST, (unknown, unknown)), LEVELS)
    assert table.to_csv(index=False).splitlines()[1].endswith(",0.0,0.0,1.0,1.0,,")
