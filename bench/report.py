"""Generated documentation: `docs/performance.md`, its plots, and the table of speed in README.md.

    pgat-fast bench report            # write them from the committed results
    pgat-fast bench report --check    # exit code 1 if they differ from the committed results

The page is rendered from `bench/performance_template.md` (Jinja), where the names of `bench.figures` are defined. In
README.md the table is between `<!-- generated: speed -->` and `<!-- end of speed -->`.
"""

import argparse
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined, TemplateError

from bench import figures
from bench.gpu.cost_model import LAUNCH_SECONDS
from bench.gpu.measure import MOST_SECONDS
from bench.plots import FOLDER, plots
from bench.result_files import ROOT
from pgat_fast.errors import BackendError, DataError
from pgat_fast.utils.io import write_atomically

README: Final = ROOT / "README.md"
PAGE: Final = ROOT / "docs" / "performance.md"
TEMPLATE: Final = ROOT / "bench" / "performance_template.md"
_TABLE: Final = re.compile(r"(<!-- generated: speed -->\n).*?(<!-- end of speed -->)", re.DOTALL)


def render_page() -> str:
    """Return the template with all figures inserted. Raises DataError if it is invalid or names an unknown figure."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= {**vars(figures), "LAUNCH_SECONDS": LAUNCH_SECONDS, "MOST_SECONDS": MOST_SECONDS}
    try:
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render()
    except TemplateError as error:
        raise DataError(f"{TEMPLATE.name}: {error}") from error


def render_readme(readme: str) -> str:
    """Return `readme` with the current table of speed. Raises DataError if its markers are missing."""
    text, count = _TABLE.subn(lambda match: f"{match[1]}\n{figures.speed()}\n\n{match[2]}", readme)
    if count != 1:
        raise DataError("README.md: expected one `<!-- generated: speed -->` with its `<!-- end of speed -->`")
    return text


def run(args: argparse.Namespace) -> int:
    """Write the generated pages and plots, or with `args.check` compare them with the committed results."""
    pages: dict[Path, str] = {README: render_readme(README.read_text(encoding="utf-8")), PAGE: render_page()}
    changed = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if args.check:
        for path in changed:
            print(f"{path.name} differs from the committed results: run `pgat-fast bench report`")
        if not changed:
            print("README.md and docs/performance.md agree with the committed results")
        return int(bool(changed))
    if find_spec("matplotlib") is None:
        raise BackendError('the plots need matplotlib: pip install "pgat-fast[plots]"')
    for path in plots(FOLDER):
        print(path, file=sys.stderr)
    for path in changed:
        write_atomically(path, pages[path].encode())
    return 0
