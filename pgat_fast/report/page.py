"""The HTML page of a run: one file without scripts that loads nothing from elsewhere."""

import logging
import shlex
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pgat_fast.errors import ConfigError
from pgat_fast.report import formatting, number_tables
from pgat_fast.report.figure_style import new_figure, to_svg
from pgat_fast.report.plots import draw_plots
from pgat_fast.report.run_files import RunFiles, is_problem, read_run
from pgat_fast.utils.io import write_atomically

logger = logging.getLogger(__name__)


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of the run in the folder `run` to `out`, by default `report.html` in that folder.

    The page of an unfinished or failed run shows what the run has written, and why other parts are missing. Without
    matplotlib the page has no figures and a note about it.

    Returns the path of the page. It is written atomically.

    Raises DataError if `run` is not a run or one of its files is damaged, ConfigError if `out` is a folder, OSError if
    it cannot be written.
    """
    files = read_run(run)
    out = run / "report.html" if out is None else out
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder: name the file to write, such as {out / 'report.html'}")
    write_atomically(out, render_page(files).encode(errors="backslashreplace"))
    return out


def render_page(run: RunFiles) -> str:
    """Render the page of `run`."""
    figures, figures_missing = _draw_figures(run)
    return (
        _make_environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            results=run.results,
            figures=figures,
            figures_missing=figures_missing,
            resume_command=f"pgat-fast train --resume {shlex.quote(str(run.folder))}",
        )
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
        "duration": formatting.format_duration,
        "flatten": formatting.flatten,
        "number": formatting.format_number,
        "signed": formatting.format_signed,
        "skills": formatting.describe_skills,
        "timestamp": formatting.format_timestamp,
        "words": formatting.format_name,
    }
    environment.tests["problem"] = is_problem
    environment.globals["tables"] = number_tables
    return environment


def _make_printable(value: object) -> object:
    """Return the text of `value` without control characters; leave markup, which the templates have made, alone."""
    return value if hasattr(value, "__html__") else formatting.replace_control_characters(str(value))


def _draw_figures(run: RunFiles) -> tuple[dict[str, Markup], str]:
    """Return the SVG of each plot for which the run has data, and why there are none without matplotlib."""
    try:
        new_figure(1.0)
    except ConfigError as error:
        logger.warning("the report has no figures: %s", error)
        return {}, str(error)
    return {name: Markup(to_svg(figure, name)) for name, figure in draw_plots(run)}, ""
