"""What is known of the kernels on each GPU: launch configurations, and from how many rows on they are faster.

`tuning_table.json` has an entry for every listed architecture (`sm_90`, `gfx942`). Each of its lines has a source:
`measured` on such a GPU, by `python -m bench.gpu.tune`, or `modelled` without one, by `python -m bench.gpu.modelled`.
The file is read once. Without a line kernels use `launch_configs`, and `auto` uses no kernel.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

FILE: Final = Path(__file__).with_name("tuning_table.json")

Source = Literal["measured", "modelled"]


class Configuration(NamedTuple):
    """Compile-time parameters of a kernel; they do not change its function."""

    block: int
    """Rows of a tile."""
    warps: int
    stages: int
    columns: int = 0
    """Columns of a tile of the hidden layer, for kernels that have one."""


class Case(NamedTuple):
    """Key, besides the GPU, of a launch configuration or of the decision to use a kernel."""

    kernel: str
    """Operator and pass, `graph_attention forward`, for a configuration; only the operator for the decision."""
    itemsize: int
    """Bytes per element of the inputs."""
    most: int
    """Largest size (nodes of a graph, states of a recurrence, columns of a row, pairs) that the case covers."""


class Threshold(NamedTuple):
    """The number of rows from which the kernels of an operator, both passes together, are faster than plain torch."""

    rows: int | None
    """None if they never are."""
    source: Source


class Entry(NamedTuple):
    """What is known of one architecture.

    Attributes:
        device: name of the device in torch, or of the one that was modelled.
        configurations: the fastest ones of those measured.
        thresholds: from which sizes on kernels are used.
    """

    device: str
    configurations: dict[Case, Configuration]
    thresholds: dict[Case, Threshold]

    @property
    def source(self) -> Source | None:
        """`measured` if all thresholds were, `modelled` if any was not, None if there are none."""
        sources = {threshold.source for threshold in self.thresholds.values()}
        return "modelled" if "modelled" in sources else max(sources, default=None)


@cache
def listed(gpu: str) -> Entry | None:
    """Return the entry of this architecture; None if there is none.

    Raises ValueError, with the name of the file, if the file does not have the format that `bench.gpu.tune` writes.
    """
    return read(FILE).get(gpu)


@cache
def applying(gpu: str) -> Entry | None:
    """Return the entry whose thresholds apply to this architecture; None if there is none.

    It is that of the architecture itself, or of the newest listed one before it of the same major compute capability,
    as `sm_80` is for `sm_86`. Raises the errors of `listed`.
    """
    entries = {name: entry for name, entry in read(FILE).items() if entry.thresholds}
    capability = _capability(gpu)
    if gpu in entries or capability is None:
        return entries.get(gpu)
    others = {name: other for name in entries if (other := _capability(name)) and other[0] == capability[0]}
    earlier = [name for name, other in others.items() if other < capability]
    return entries[max(earlier, key=others.__getitem__)] if earlier else None


def _capability(gpu: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"sm_(\d+)(\d)", gpu)
    return (int(match[1]), int(match[2])) if match else None


def read(file: Path) -> dict[str, Entry]:
    """Read the entries of `file`, by architecture. Raises the errors of `listed`."""
    try:
        entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            gpu: Entry(
                entry["device"],
                {_case(line): Configuration(*map(int, line["configuration"])) for line in entry["configurations"]},
                {_case(line): Threshold(line["rows"], _source(line)) for line in entry["thresholds"]},
            )
            for gpu, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} is not what `python -m bench.gpu.tune` writes ({type(error).__name__}: {error}): restore it, or "
            "put {} into it to do without measurements"
        ) from error


def _case(line: dict[str, Any]) -> Case:
    return Case(str(line["kernel"]), int(line["itemsize"]), int(line["most"]))


def _source(line: dict[str, Any]) -> Source:
    source: Source = line["source"]
    if source not in get_args(Source):
        raise ValueError(f"the source {source!r} is not one of {', '.join(get_args(Source))}")
    return source


def as_json(entry: Entry) -> dict[str, Any]:
    """Return `entry` in the JSON format that `read` reads."""
    return {
        "device": entry.device,
        "configurations": [
            case._asdict() | {"configuration": list(chosen), "source": "measured"}
            for case, chosen in entry.configurations.items()
        ],
        "thresholds": [case._asdict() | threshold._asdict() for case, threshold in entry.thresholds.items()],
    }


def fitting(cases: Any, kernel: str, itemsize: int, size: int) -> Case | None:
    """Return the smallest of `cases` that covers such inputs; None if there is none."""
    matches = [case for case in cases if case[:2] == (kernel, itemsize) and size <= case.most]
    return min(matches, key=lambda case: case.most, default=None)
