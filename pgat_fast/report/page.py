"""The HTML page of a run: one file without scripts that loads nothing from elsewhere."""

import logging
import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pgat_fast.errors import ConfigError
from pgat_fast.report.figure_style import new_figure, to_svg
from pgat_fast.report.formatting import (
    flatten,
    format_duration,
    format_number,
    format_timestamp,
    replace_control_characters,
)
from pgat_fast.report.plots import draw_plots
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.report.test_section import summarize_test
from pgat_fast.report.training_section import summarize_training
from pgat_fast.utils.io import write_atomically

logger = logging.getLogger(__name__)


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of the run in the folder `run` to `out`, by default `report.html` in that folder.

    The page of an unfinished or failed run shows what the run has written, and why the rest is missing. Without
    matplotlib the page has no figures and says so.

    Returns the path of the page. It is written atomically.

    Raises DataError where `run` is no run or one of its files is damaged, ConfigError where `out` is a folder, OSError
    where it cannot be written.
    """
    files = read_run(run)
    out = run / "report.html" if out is None else out
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder: name the file to write, such as {out / 'report.html'}")
    write_atomically(out, render_page(files).encode())
    return out


def render_page(run: RunFiles) -> str:
    """Render the page of `run`."""
    figures, figures_missing = _draw_figures(run)
    template = _make_environment().get_template("page.html.j2")
    return template.render(
        run=run,
        results=run.results,
        test=summarize_test(run.results) if run.results else None,
        training=summarize_training(run),
        figures=figures,
        figures_missing=figures_missing,
        resume_command=f"pgat-fast train --resume {shlex.quote(str(run.folder))}",
    )


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pgat_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_make_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "flatten": flatten,
        "number": format_number,
        "timestamp": format_timestamp,
    }
    return environment


def _make_printable(value: object) -> object:
    """Return the text of `value` without control characters; leave markup, which the templates have made, alone."""
    return value if hasattr(value, "__html__") else replace_control_characters(str(value))


def _draw_figures(run: RunFiles) -> tuple[dict[str, Markup], str]:
    """Return the SVG of each plot for which the run has data, and why there are none without matplotlib."""
    try:
        new_figure(1.0)
    except ConfigError as error:
        logger.warning("the report has no figures: %s", error)
        return {}, str(error)
    return {name: Markup(to_svg(figure, name)) for name, figure in draw_plots(run)}, ""
