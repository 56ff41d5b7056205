"""Training from Python and reading the results.

    pgat-fast data build
    python examples/train.py
    python examples/train.py training.epochs=1 run.name=short

Run it in the root folder of the repository.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pgat_fast


def main(overrides: Sequence[str] = ()) -> Path:
    """Train the quickstart configuration with `overrides`, print the test errors and return the folder of the run."""
    config = pgat_fast.load_config("configs/quickstart.yaml", overrides=list(overrides))
    folder, results = pgat_fast.train(config)
    scaled = results["test"]["scaled"]
    for name in ("model", *scaled["skill"]):  # followed by the naive baselines
        print(f"{name}: test RMSE {scaled[name]['overall']['rmse']:.4f} in scaled units")
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
