"""Results of a sweep: one row per job, and the mean and spread over seeds for every point of the grid."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from pgat_fast.errors import ConfigError
from pgat_fast.evaluation.metrics import finite, skill
from pgat_fast.sweep.jobs import Job
from pgat_fast.training.run_folder import finished_results, read_status
from pgat_fast.utils.io import write_atomically, write_json
from pgat_fast.utils.table import format_columns

RESULTS: Final = "results.csv"
SUMMARY: Final = "summary.json"
NOT_RUN: Final = "not run"
MEASURES: Final = ("best_validation_loss", "test_rmse", "test_mae", "training_seconds")
"""Measures of every finished job; errors are in scaled units."""


def collect(folder: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per job: the settings of the grid, seed, `state`, `MEASURES`, skill against each baseline."""
    rows = []
    for job in jobs:
        row: dict[str, Any] = {"job": job.name, **dict(job.settings), "seed": job.seed}
        results = finished_results(job.folder(folder))
        if results is None:
            rows.append(row | {"state": read_status(job.folder(folder)).get("state", NOT_RUN)})
            continue
        scaled = results["test"]["scaled"]
        row |= {
            "state": "finished",
            "best_validation_loss": results["best_validation_loss"],
            "test_rmse": scaled["model"]["overall"]["rmse"],
            "test_mae": scaled["model"]["overall"]["mae"],
            "training_seconds": results["training_seconds"],
        }
        rows.append(row | {f"skill_{name}": value for name, value in scaled["skill"].items()})
    return pd.DataFrame(rows)


def summarize(folder: Path, jobs: Sequence[Job], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a record for each point of the grid, best validation loss first; `table` is the result of `collect`.

    Keys: `settings`; `seeds`, the number finished of `asked`; `measures`, with the `mean` and `spread` of every measure
    and skill (standard deviation over seeds, None for one seed); `ensemble`, see `ensemble_skill`. Points without
    finished seeds come last.
    """
    names = [name for name in table.columns if name in MEASURES or str(name).startswith("skill_")]
    finished_rows = table[table["state"] == "finished"].set_index("job")
    records = []
    for settings in dict.fromkeys(job.settings for job in jobs):
        point_jobs = [job for job in jobs if job.settings == settings]
        finished_jobs = [job for job in point_jobs if job.name in finished_rows.index]
        measures = {}
        if finished_jobs:
            rows = finished_rows.loc[[job.name for job in finished_jobs], names].astype(float)
            for name in names:
                measures[str(name)] = {"mean": finite(rows[name].mean()), "spread": finite(rows[name].std())}
        members = [job.folder(folder) for job in finished_jobs]
        records.append(
            {
                "settings": dict(settings),
                "asked": len(point_jobs),
                "seeds": len(members),
                "measures": measures,
                "ensemble": ensemble_skill(members) if len(members) > 1 else None,
            }
        )
    return sorted(records, key=_loss)


def _loss(record: dict[str, Any]) -> float:
    loss = record["measures"].get("best_validation_loss", {}).get("mean")
    return float("inf") if loss is None else float(loss)


def best_members(folder: Path, jobs: Sequence[Job]) -> list[Path]:
    """Return the folders of the finished runs at the point of the grid with the best mean validation loss.

    Raises ConfigError if no job is finished.
    """
    table = collect(folder, jobs)
    best, finished_names = summarize(folder, jobs, table)[0], set(table["job"][table["state"] == "finished"])
    chosen = [job for job in jobs if dict(job.settings) == best["settings"]]
    members = [job.folder(folder) for job in chosen if job.name in finished_names]
    if not members:
        raise ConfigError(f"{folder}: no job of this sweep is finished: run `pgat-fast sweep` again to continue it")
    return members


def ensemble_skill(members: Sequence[Path]) -> dict[str, Any]:
    """Return the scaled `rmse` of the mean of the members' test forecasts, and its `skill` against naive baselines.

    The runs differ only in their seed, so that their test windows are the same.
    """
    from pgat_fast.forecasting.load_run import target_scaler_of

    tables = [pd.read_csv(folder / "forecasts.csv") for folder in members]
    scaler = target_scaler_of(members[0])
    scales = dict(zip(scaler.columns, scaler.std, strict=True))
    mean = sum(table["forecast"] for table in tables) / len(tables)
    errors = (mean - tables[0]["truth"]) / tables[0]["target"].map(scales)
    mse = float((errors**2).mean())
    results = finished_results(members[0])
    assert results is not None
    scaled = results["test"]["scaled"]
    against = {name: skill(mse, scaled[name]["overall"]["mse"]) for name in scaled["skill"]}
    return {"members": len(members), "rmse": mse**0.5, "skill": against}


def write_results(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Write `results.csv` (one line per job) and `summary.json` into `folder`; return the result of `summarize`."""
    table = collect(folder, jobs)
    records = summarize(folder, jobs, table)
    content = table.to_csv(index=False, lineterminator="\n")
    write_atomically(folder / RESULTS, content.encode())
    write_json(folder / SUMMARY, {"points": records})
    return records


def as_text(records: Sequence[dict[str, Any]]) -> str:
    """Return the summary as a text table, best point first."""
    skills = sorted({name for record in records for name in record["measures"] if name.startswith("skill_")})
    titles = [f"skill vs {name.removeprefix('skill_')}" for name in skills]
    header = ["settings", "seeds", "validation loss", "test RMSE", *titles, "ensemble RMSE"]
    rows = [[*header, *(f"ensemble {title}" for title in titles)]]
    for record in records:
        measures, ensemble = record["measures"], record["ensemble"] or {"rmse": None, "skill": {}}
        rows.append(
            [
                ", ".join(f"{key}={value}" for key, value in record["settings"].items()) or "as configured",
                f"{record['seeds']} of {record['asked']}",
                *(_format_mean(measures.get(name), ".5f") for name in ("best_validation_loss", "test_rmse")),
                *(_format_mean(measures.get(name), "+.4f") for name in skills),
                _format(ensemble["rmse"], ".5f"),
                *(_format(ensemble["skill"].get(name.removeprefix("skill_")), "+.4f") for name in skills),
            ]
        )
    return format_columns(rows)


def _format_mean(value: dict[str, float | None] | None, form: str) -> str:
    if value is None or value["spread"] is None:
        return _format(None if value is None else value["mean"], form)
    return f"{_format(value['mean'], form)} +- {value['spread']:.2g}"


def _format(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
