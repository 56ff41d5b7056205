"""Folders of runs as the trainer writes them, with synthetic but consistent numbers."""

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgat_fast.config import config_to_dict, dump_config, load_config
from pgat_fast.data.columns import BODIES, COLUMNS, TARGETS
from pgat_fast.evaluation.metrics import metrics_by_target, skill
from pgat_fast.training.checklist import checklist
from pgat_fast.training.results_schema import checked
from pgat_fast.training.run_folder import write_status

Array = NDArray[np.float64]

START = datetime(2026, 3, 2, 21, 4, 5, tzinfo=UTC)
STEPS = 40
"""Optimizer steps of an epoch."""
SCENARIOS = {
    "gaussian_noise": "normal noise of standard deviation 0.05 is added",
    "zero_input": "every value is 0",
    "scale": "every value is multiplied by 1.25",
    "time_reversal": "the days are in reversed order",
    "feature_dropout": "each feature of a window is 0 with probability 0.1",
}


def write_finished_run(
    folder: Path,
    *,
    name: str = "nightly",
    epochs: int = 12,
    windows: int = 41,
    days: int = 10,
    targets: tuple[str, ...] = TARGETS,
    nodes: tuple[str, ...] = BODIES,
    device: bool = False,
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write a finished run that was killed and resumed once; return its results.

    The standard targets have prices.
    """
    generator = np.random.default_rng(7)
    config = load_config(None, ["run.memory_limit_gb=6.0", f"training.epochs={epochs}", *overrides])
    truth, forecast, naive = _forecasts(generator, windows, days, len(targets))
    prices = targets == TARGETS
    test: dict[str, Any] = {
        "loss": float(np.mean((forecast - truth) ** 2)),
        "windows": windows,
        "relative_prices": False,
        "scaled": _comparison(forecast, naive, truth, targets),
        "price": _comparison(_prices(forecast), {key: _prices(values) for key, values in naive.items()},
                             _prices(truth), targets) if prices else None,
        "by_horizon": {"scaled": _by_horizon(forecast, naive, truth), "price": None},
        "intervals": {"method": "conformal", "calibration_windows": 41, "scaled": _levels(targets, days, 1.0),
                      "price": _levels(targets, days, 90.0, 0.05) if prices else None},
        "mixture": None,
    }  # fmt: skip
    if prices:
        test["by_horizon"]["price"] = {
            key: [80.0 * value for value in curve] for key, curve in test["by_horizon"]["scaled"].items()
        }
    records = _epochs(epochs)
    best = min(records, key=lambda record: record["validation_loss"])
    clean = test["scaled"]["model"]
    results: dict[str, Any] = {
        "name": name,
        "task": f"daily forecast, 250 days to the next {days}",
        "status": "complete",
        "config": config_to_dict(config),
        "seq_len": 250,
        "pred_len": days,
        "targets": list(targets),
        "target_count": len(targets),
        "parameters": 1_234_567,
        "started": START.isoformat(),
        "finished": (START + timedelta(hours=9)).isoformat(),
        "training_seconds": 5025.0,
        "evaluation_seconds": 12.34,
        "resumes": 1,
        "device": "NVIDIA H100" if device else "cpu, 2 threads",
        "backend": "reference",
        "precision": "float32",
        "versions": {"pgat_fast": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7"},
        "data": {
            "path": "data/prepared_financial_data.csv",
            "sha256": "0123456789abcdef" * 4,
            "rows": 7109,
            "first_date": "1998-01-02",
            "last_date": "2026-02-27",
            "base_price": 970.43,
            "windows": {"train": 6750, "validation": 41, "test": windows},
        },
        "training_ended": f"all {epochs} epochs are done",
        "initial_validation_loss": 1.9876,
        "epochs": records,
        "train_losses": [record["train_loss"] for record in records],
        "validation_losses": [record["validation_loss"] for record in records],
        "best_epoch": best["epoch"],
        "best_validation_loss": best["validation_loss"],
        "test": test,
        "adversarial": {"seed": 2024, "scenarios": _scenarios(clean)},
        "memory": {
            "peak_process_gib": 2.345,
            "peak_device_gib": 11.25 if device else None,
            "limit_gib": 6.0,
            "device_limit_gib": 40.0 if device else None,
        },
        "checkpoints": {
            "best": _checkpoint(best["epoch"]),
            "latest": _checkpoint(epochs),
            "kept": sorted({_checkpoint(best["epoch"]), _checkpoint(epochs)}),
            "verified": True,
            "faults": [],
        },
    }
    results["checklist"] = checklist(results)
    results = checked(results)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    write_status(folder, "finished", reason=results["training_ended"], exit_code=0, stage="evaluation",
                 epoch=epochs + 1, step=epochs * STEPS)  # fmt: skip
    for checkpoint in results["checkpoints"]["kept"]:
        (folder / "checkpoints" / checkpoint).mkdir(parents=True)
        (folder / "checkpoints" / checkpoint / "manifest.json").write_text("{}", encoding="utf-8")
    _write_logs(folder, records, device)
    _write_forecasts(folder / "forecasts.csv", truth, forecast, targets, prices)
    _write_adjacency(folder / "adjacency.csv", generator, nodes)
    return results


def write_unfinished_run(folder: Path, state: str, *, epochs: int = 3, **status: Any) -> None:
    """Write a run that has completed `epochs` epochs, with `status` in `status.json`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config(None)), encoding="utf-8")
    write_status(folder, state, **status)
    _write_logs(folder, _epochs(epochs), device=False, ended=False)


def _checkpoint(epoch: int) -> str:
    return f"epoch-{epoch:04d}-step-{epoch * STEPS:08d}"


def _forecasts(generator: np.random.Generator, windows: int, days: int, targets: int) -> tuple[Array, Array, Any]:
    """Return truth, forecasts of the model and naive forecasts of overlapping windows, [windows, days, targets]."""
    returns = generator.normal(size=(windows + days, targets))
    rows = np.arange(windows)[:, None] + np.arange(days) + 1
    truth = returns[rows]
    naive = {
        "last_value": np.broadcast_to(returns[:windows, None], truth.shape),
        "zero_return": np.full(truth.shape, -0.02),
        "drift": np.zeros(truth.shape),
    }
    return truth, 0.02 * truth + generator.normal(scale=0.12, size=truth.shape), naive


def _prices(scaled: Array) -> Array:
    return np.asarray(5000 * np.exp(np.cumsum(0.01 * scaled, axis=1)))


def _comparison(forecast: Array, naive: dict[str, Array], truth: Array, targets: tuple[str, ...]) -> dict[str, Any]:
    tables: dict[str, Any] = {"model": metrics_by_target(forecast, truth, targets)}
    tables |= {key: metrics_by_target(values, truth, targets) for key, values in naive.items()}
    error = tables["model"]["overall"]["mse"]
    return tables | {"skill": {key: skill(error, tables[key]["overall"]["mse"]) for key in naive}}


def _by_horizon(forecast: Array, naive: dict[str, Array], truth: Array) -> dict[str, list[float]]:
    forecasts = {"model": forecast} | naive
    return {key: np.sqrt(np.mean((values - truth) ** 2, axis=(0, 2))).tolist() for key, values in forecasts.items()}


def _levels(targets: tuple[str, ...], days: int, width: float, excess: float = 0.0) -> list[dict[str, Any]]:
    levels = {0.5: 0.4878 + excess, 0.8: 0.7561 + excess, 0.95: None if days > 20 else 0.9146 + excess}
    return [
        {
            "nominal": nominal,
            "coverage": {
                "overall": covered,
                "by_target": dict.fromkeys(targets, covered),
                "by_horizon": [covered] * days,
            },
            "mean_width": None if covered is None else width * (1 + nominal),
        }
        for nominal, covered in levels.items()
    ]


def _epochs(count: int) -> list[dict[str, Any]]:
    numbers = np.arange(1, count + 1)
    train = 1.05 + 0.8 * np.exp(-numbers / 3.0)
    validation = 1.0 + 0.5 * np.exp(-numbers / 2.0) + 0.0004 * (numbers - 7.0) ** 2
    return [
        {
            "epoch": int(number),
            "learning_rate": 1e-3 * min(1.0, number / 5),
            "optimizer_steps": STEPS,
            "skipped_steps": 0,
            "train_loss": float(train[number - 1]),
            "validation_loss": float(validation[number - 1]),
            "seconds": 418.75,
            "complete": True,
        }
        for number in numbers
    ]


def _scenarios(clean: dict[str, Any]) -> dict[str, Any]:
    """Return scenarios of which the last one failed."""
    scenarios: dict[str, Any] = {}
    for position, (name, description) in enumerate(SCENARIOS.items()):
        ratio = 1 + 0.03 * position
        metrics = {
            target: {key: None if value is None else value * ratio for key, value in measures.items()}
            for target, measures in clean.items()
        }
        change = {key: (ratio - 1) * clean["overall"][key] for key in ("mae", "mse", "rmse")} | {"ratio": ratio}
        scenarios[name] = {
            "status": "ok",
            "description": description,
            "metrics": metrics,
            "change": change,
            "shift": 0.01 * position,
            "finite": True,
            "error": None,
        }
    scenarios["feature_dropout"] |= {
        "status": "failed",
        "metrics": None,
        "change": None,
        "shift": None,
        "finite": False,
        "error": "the forecast is not finite",
    }
    return scenarios


def _write_logs(folder: Path, records: list[dict[str, Any]], device: bool, ended: bool = True) -> None:
    """Write both logs with a line every 10 steps; the process was killed in epoch 3 and resumed seven hours later."""
    time = START
    metrics: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    generator = np.random.default_rng(3)

    def note(stage: str, epoch: int, step: int, **values: Any) -> None:
        place = {"time": time.isoformat(timespec="milliseconds"), "level": values.pop("level", "INFO"),
                 "stage": stage, "epoch": epoch, "step": step, "batch_shape": [16, 250, 118]}  # fmt: skip
        metrics.append(place | values)
        used = 1.2 + 0.9 * (1 - np.exp(-len(memory) / 6)) + 0.05 * float(generator.random())
        reading = {"process_gib": used, "process_peak_gib": used + 0.15, "system_available_gib": 50.0,
                   "system_used_percent": 21.5}  # fmt: skip
        if device:
            reading |= {"device_allocated_gib": 6 + float(generator.random()), "device_reserved_gib": 12.5,
                        "device_peak_allocated_gib": 11.25, "device_total_gib": 79.0}  # fmt: skip
        memory.append(place | reading)

    note("start", 1, 0)
    for record in records:
        number, first_step = record["epoch"], (record["epoch"] - 1) * STEPS
        for step in range(10, STEPS + 1, 10):
            time += timedelta(seconds=record["seconds"] / 4)
            if (number, step) == (3, 20):
                time += timedelta(hours=7)
                note("start", 1, 0)
                note("resume", number, first_step + 10, checkpoint=f"epoch-0002-step-{first_step + 10:08d}")
            loss = record["train_loss"] + float(generator.normal(scale=0.03))
            note("train", number, first_step + step, loss=loss, learning_rate=record["learning_rate"],
                 gradient_norm=0.8, windows_per_second=2.5, samples_per_second=625.0, seconds_per_step=6.4)  # fmt: skip
        note("validation", number, first_step + STEPS, train_loss=record["train_loss"], improved=True,
             validation_loss=record["validation_loss"], learning_rate=record["learning_rate"],
             epoch_seconds=record["seconds"])  # fmt: skip
    if ended:
        note("end", len(records) + 1, len(records) * STEPS)
    for name, lines in (("metrics", metrics), ("memory", memory)):
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _write_forecasts(path: Path, truth: Array, forecast: Array, targets: tuple[str, ...], prices: bool) -> None:
    windows, days, _ = truth.shape
    dates = np.busday_offset("2025-12-16", np.arange(windows + days + 1), roll="forward")
    header = ["origin", "date", "horizon", "target", "forecast", "truth", "price_forecast", "price_truth"]
    header += [f"price_{side}_{level}" for level in (50, 80, 95) for side in ("lower", "upper")]
    close = 5000 * np.exp(0.01 * np.cumsum(np.append(0.0, truth[:, 0, 0])))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for w in range(windows):
            for d in range(days):
                for c, target in enumerate(targets):
                    row: list[Any] = [dates[w], dates[w + d + 1], d + 1, target]
                    row += [0.01 * forecast[w, d, c], 0.01 * truth[w, d, c]]
                    if prices:
                        true = close[0] * np.exp(
                            0.01 * (np.log(close[w] / close[0]) * 100 + truth[w, : d + 1, 0].sum())
                        )
                        center = close[w] * np.exp(0.01 * forecast[w, : d + 1, c].sum()) * (1 + 0.002 * c)
                        spread = [0.0067 * np.sqrt(d + 1) * factor for factor in (1.0, 1.9, 2.9)]
                        row += [center, true * (1 + 0.002 * c)]
                        row += [center * np.exp(sign * s) for s in spread for sign in (-1, 1)]
                    else:
                        row += [""] * 8
                    writer.writerow(row)


def _write_adjacency(path: Path, generator: np.random.Generator, nodes: tuple[str, ...]) -> None:
    weights = generator.gamma(0.6, size=(len(nodes), len(nodes))) + np.eye(len(nodes))
    weights /= weights.sum(axis=1, keepdims=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *nodes])
        writer.writerows([node, *row] for node, row in zip(nodes, weights.tolist(), strict=True))


MANY_NODES = COLUMNS
"""The 118 node names of the graph over all inputs."""
