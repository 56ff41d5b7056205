"""Forecasts of the days after the last row of a file, with a trained run.

    python examples/forecast.py runs/quickstart data/prepared_financial_data.csv

Run it in the root folder of the repository.
"""

import sys

import pandas as pd

import pgat_fast


def main(folder: str, source: str) -> pd.DataFrame:
    """Load the best weights in `folder`, forecast the days after `source`, print and return the table."""
    run = pgat_fast.load_run(folder)
    forecast = pgat_fast.predict(run, source)
    print(forecast[["date", "close", "close_lower_80", "close_upper_80"]].to_string(index=False))
    print(f"last close {forecast.attrs['last_close']:.2f}, checkpoint {forecast.attrs['checkpoint']}")
    print(pgat_fast.evaluate(run).metrics().to_string(index=False))
    return forecast


if __name__ == "__main__":
    main(*sys.argv[1:])
