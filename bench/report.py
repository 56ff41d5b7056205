"""What the README says of performance: written, tables, plots and figures in sentences, from the committed results.

    pgat-fast bench report            # rewrites README.md between its markers, and bench/results/plots/
    pgat-fast bench report --check    # exit code 1 where README.md says something else than the results

A written block of the README stands between `<!-- written: NAME -->` and `<!-- end of NAME -->`: see `BLOCKS`. The
section on performance is `bench/performance.md`, in which `{NAME}` stands for one of `bench.figures`.
"""

import argparse
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from bench.compare import RESULTS, ROOT
from bench.figures import FIGURES, decoder_future
from bench.plots import FOLDER, plots
from pgat_fast.errors import BackendError, DataError
from pgat_fast.files import write_atomically

README: Final = ROOT / "README.md"
TEMPLATE: Final = ROOT / "bench" / "performance.md"
_BLOCK: Final = re.compile(r"(<!-- written: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_FIGURE: Final = re.compile(r"\{(\w+)\}")


def performance() -> str:
    """`bench/performance.md` with today's figures. Raises DataError where it asks for one that there is not."""

    def figure(match: re.Match[str]) -> str:
        if match[1] not in FIGURES:
            raise DataError(f"{TEMPLATE.name} asks for {match[0]}: there are {', '.join(FIGURES)}")
        return FIGURES[match[1]]()

    return _FIGURE.sub(figure, TEMPLATE.read_text()).strip()


def printed(name: str) -> str:
    """What a command has printed."""
    return f"```\n{(RESULTS / name).with_suffix('.txt').read_text().strip()}\n```"


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "performance": performance,
    "decoder_future": decoder_future,
    "make_train": lambda: printed("make_train"),
    "sweep": lambda: printed("sweep"),
}
"""What is written into the README."""


def rewritten(readme: str) -> str:
    """The README with all blocks of today's results. Raises DataError where it asks for one that there is not."""
    opened, whole = readme.count("<!-- written: "), len(_BLOCK.findall(readme))
    if opened != whole:
        raise DataError(f"README.md: {opened} blocks begin, {whole} of them have their end: `<!-- end of NAME -->`")

    def block(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in BLOCKS:
            raise DataError(f"README.md asks for a block {name}: there are {', '.join(BLOCKS)}")
        return f"{opening}\n{BLOCKS[name]()}\n\n{closing}"

    return _BLOCK.sub(block, readme)


def run(args: argparse.Namespace) -> int:
    """`pgat-fast bench report`: rewrite README.md and the plots, or say whether it is as it would be."""
    before = README.read_text()
    after = rewritten(before)
    if args.check:
        print("README.md says what the results say" if after == before else "README.md is older than the results")
        return int(after != before)
    if find_spec("matplotlib") is None:
        raise BackendError('the plots need matplotlib: pip install "pgat-fast[plots]"')
    for path in plots(FOLDER):
        print(path.relative_to(ROOT), file=sys.stderr)
    if after != before:
        write_atomically(README, after.encode())
    return 0
