"""Backtests with and without the sky and the calendar of the days to forecast in the decoder, at the same origins.

    python -m bench.studies.decoder_future --config configs/quickstart.yaml --origins 4 --json OUT

Trains twice for every origin, with `data.decoder_future` set to zeros and to known; all other settings, including the
seed, are equal.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from bench.processes import add_arguments, make_parser, write
from pgat_fast import load_config
from pgat_fast.training.backtest import backtest, summarize


def main() -> None:
    """Run the backtests, and print and write their errors."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--origins", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/decoder_future"), help="folder of the runs")
    add_arguments(parser)
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
    write(args.json, "bench.studies.decoder_future", {"results": results})
    if args.json:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
