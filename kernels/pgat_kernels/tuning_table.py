"""Measurements on GPUs: launch configurations, and the number of rows from which a kernel is faster than plain torch.

`tuning_table.json`, written by `python -m bench.gpu.tune`, has an entry for every measured architecture (`sm_90`,
`gfx942`). It is read once. Without an entry kernels use `launch_configs`, and `auto` uses no kernel.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).with_name("tuning_table.json")


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


class Measured(NamedTuple):
    """Measurements on one architecture.

    Attributes:
        device: name of the device in torch.
        configurations: the fastest ones of those tried.
        from_rows: the number of rows from which the kernels of an operator, forward and backward together, were faster
            than plain torch; None if they never were.
    """

    device: str
    configurations: dict[Case, Configuration]
    from_rows: dict[Case, int | None]


@cache
def measured(gpu: str) -> Measured | None:
    """Return the measurements on this architecture; None if there are none.

    Raises ValueError, with the name of the file, if the file does not have the format that `bench.gpu.tune` writes.
    """
    return read(FILE).get(gpu)


def read(file: Path) -> dict[str, Measured]:
    """Read the measurements from `file`, by architecture. Raises the errors of `measured`."""
    try:
        entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {
            gpu: Measured(
                entry["device"],
                {_case(line): Configuration(*map(int, line["configuration"])) for line in entry["configurations"]},
                {_case(line): line["rows"] for line in entry["from_rows"]},
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


def as_json(entry: Measured) -> dict[str, Any]:
    """Return `entry` in the JSON format that `read` reads."""
    return {
        "device": entry.device,
        "configurations": [
            case._asdict() | {"configuration": list(chosen)} for case, chosen in entry.configurations.items()
        ],
        "from_rows": [case._asdict() | {"rows": rows} for case, rows in entry.from_rows.items()],
    }


def fitting(cases: Any, kernel: str, itemsize: int, size: int) -> Case | None:
    """Return the smallest of `cases` that covers such inputs; None if there is none."""
    matches = [case for case in cases if case[:2] == (kernel, itemsize) and size <= case.most]
    return min(matches, key=lambda case: case.most, default=None)
