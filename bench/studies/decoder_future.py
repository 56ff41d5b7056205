"""Backtests with and without the sky and the calendar of the days to forecast in the decoder, at the same origins.

    python -m bench.studies.decoder_future --config configs/quickstart.yaml --origins 4 --json OUT

Trains twice for every origin, with `data.decoder_future` set to zeros and to known; all other settings, including the
seed, are equal.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.machine import describe
from pgat_fast import load_config
from pgat_fast.training.backtest import backtest, summarize
from pgat_fast.utils.io import write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--origins", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/decoder_future"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    results: dict[str, Any] = {}
    for future in ("zeros", "known"):
        config = load_config(args.config, [*args.overrides, f"data.decoder_future={future}"])
        table = backtest(config, args.folder / future, args.origins)
        results[future] = {"origins": table.reset_index().to_dict("records"), "summary": summarize(table)}
        print(f"{future}:\n{table.to_string()}")
    for zeros, known in zip(results["zeros"]["origins"], results["known"]["origins"], strict=True):
        print(f"origin {zeros['origin']}: MSE known / zeros {known['mse_model'] / zeros['mse_model']:.4f}")
    if args.json:
        command = " ".join(["python", "-m", "bench.studies.decoder_future", *sys.argv[1:]])
        write_json(args.json, {"command": command, "machine": describe(), "results": results})
        shutil.rmtree(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
