"""One HTML page that tells of a run, in one file: no script, nothing to be loaded from elsewhere."""

import logging
import shlex
from pathlib import Path

from pgat_fast.errors import ConfigError
from pgat_fast.files import write_atomically
from pgat_fast.report.course import course_sections
from pgat_fast.report.markup import (
    Html,
    badge,
    duration,
    facts,
    figure,
    join,
    moment,
    number,
    paragraph,
    prose,
    raw,
    text,
)
from pgat_fast.report.outcome import UNITS, Figures, outcome_sections, verdict
from pgat_fast.report.run_files import RunFiles, read_run

logger = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("page.css")

CAPTIONS = {
    "forecasts": "Truth and forecasts on the test days; each point was forecast from what was known so many days "
    "before.",
    "error_by_horizon": "Error of each forecast day, over all test windows and targets. Lower is better.",
    "interval_coverage": "Share of test truths inside the intervals. Above the dashed line they are too wide, "
    "below it too narrow.",
    "adversarial": "Errors of the same weights on perturbed histories; the dashed line is the error on clean ones.",
    "losses": "Losses are means over windows. The star is the epoch whose weights were kept as the best.",
    "learning_rate": "Learning rate of each epoch; it is constant within one.",
    "memory": "Readings while the run was at work.",
    "adjacency": "Adjacency of the best weights, a mean over the test windows and their days: how much the row's node "
    "receives from the column's.",
}  # fmt: skip

_BADGES = {"finished": "good", "running": "neutral", "stopped": "bad", "failed": "bad"}


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page on the run in the folder `run` to `out`, by default `report.html` in that folder.

    An unfinished or failed run gets a page of whatever it has, and of why the rest is missing. Without matplotlib the
    page has no figures and says so.

    Returns the path of the page, which appears whole or not at all.

    Raises DataError where `run` is no run or a file of it is damaged, ConfigError where `out` is a folder, OSError
    where it cannot be written.
    """
    files = read_run(run)
    out = run / "report.html" if out is None else out
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder: name the file to write, such as {out / 'report.html'}")
    write_atomically(out, page(files).encode())
    return out


def page(run: RunFiles) -> Html:
    """The whole page."""
    figures, lacking = _figures(run)
    sections = [*outcome_sections(run, figures), *course_sections(run, figures)]
    return Html(
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(run.name)}: {text(run.state)}</title>\n"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{_header(run, lacking)}\n<nav>\n{join(part.link() for part in sections)}\n</nav>\n"
        f"<main>\n{join(part.html() for part in sections)}\n</main>\n"
        f"<footer>{paragraph('Made by pgat-fast report from the files in the folder of the run.')}</footer>\n"
        "</body>\n</html>\n"
    )


def _header(run: RunFiles, lacking: str) -> Html:
    parts = [Html(f"<h1>{text(run.name)} {badge(run.state, _BADGES.get(run.state, 'neutral'))}</h1>")]
    if run.state != "finished":
        parts.append(_unfinished(run))
    if run.results:
        parts += _headline(run)
    if lacking:
        parts.append(paragraph(lacking, "note"))
    return Html(f"<header>\n{join(parts)}\n</header>")


def _headline(run: RunFiles) -> list[Html]:
    results = run.results
    test = results["test"]
    parts = [
        paragraph(f"Squared error, {UNITS[units]}: {verdict(test[units]['skill'])}.", "verdict")
        for units in UNITS
        if test[units]
    ]
    days = "" if run.forecasts is None else f", {run.forecasts.dates.min()} to {run.forecasts.dates.max()}"
    parts.append(
        prose(
            f"On {number(test['windows'])} test windows that overlap{days}: one stretch of time proves little. "
            "A backtest says more: `pgat-fast evaluate RUN --origins N`.",
            "note",
        )
    )
    if results["status"] != "complete":
        parts.append(paragraph(f"Training {results['status']}: {results['training_ended']}."))
    parts.append(
        facts(
            {
                "task": results["task"],
                "targets": ", ".join(results["targets"][:8]) + (" ..." if len(results["targets"]) > 8 else ""),
                "parameters": results["parameters"],
                "epochs": f"{len(results['epochs'])}, best {results['best_epoch']}",
                "best validation loss": number(results["best_validation_loss"], 5),
                "test loss": number(test["loss"], 5),
                "training time": duration(results["training_seconds"]),
                "device": results["device"],
                "finished": raw(moment(results["finished"])),
                "resumed": {0: "never", 1: "once"}.get(results["resumes"], f"{results['resumes']} times"),
            }
        )
    )
    return parts


def _unfinished(run: RunFiles) -> Html:
    status = run.status
    where = ", ".join(f"{key} {status[key]}" for key in ("stage", "epoch", "step") if status.get(key) is not None)
    lines = [paragraph(f"Why: {status['reason']}")] if status.get("reason") else []
    if where or status.get("time"):
        time = Html(f" at {moment(status['time'])}") if status.get("time") else ""
        lines.append(Html(f"<p>Last noted{time}: {text(where or 'nothing')}.</p>"))
    if status.get("exit_code") is not None:
        lines.append(paragraph(f"Exit code {status['exit_code']}."))
    match run.state:
        case "running":
            who = f"process {status['pid']} on {status.get('host', '?')}" if "pid" in status else "its process"
            lines.append(
                paragraph(
                    f"This page shows what there was when it was made. If {who} is not at work, the run was killed."
                )
            )
            lines.append(_resume(run))
        case "stopped" | "failed":
            lines.append(_resume(run))
        case "unknown":
            lines.append(paragraph("Nothing says how far this run has come: there is no status.json."))
    kind = "calm" if run.state == "running" else "alert"
    return Html(f'<div class="{kind}">\n{join(lines)}\n</div>')


def _resume(run: RunFiles) -> Html:
    if not run.checkpoints:
        return paragraph("There is no checkpoint to go on from.")
    command = f"pgat-fast train --resume {shlex.quote(str(run.folder))}"
    return Html(f"<p>To go on from {text(run.checkpoints[-1])}: <code>{text(command)}</code></p>")


def _figures(run: RunFiles) -> tuple[Figures, str]:
    """The figures that the run allows, and what to say where matplotlib is not there to draw them."""
    from pgat_fast.report.figure_style import new_figure, to_svg
    from pgat_fast.report.plots import draw_plots

    try:
        new_figure(1.0)
    except ConfigError as error:
        logger.warning("the report has no figures: %s", error)
        return {}, f"This page has no figures: {error}"
    return {
        name: figure(to_svg(drawn, name, text(CAPTIONS[name])), CAPTIONS[name]) for name, drawn in draw_plots(run)
    }, ""
