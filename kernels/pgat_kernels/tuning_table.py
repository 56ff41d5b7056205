"""Measurements on GPUs: launch configurations of kernels, and from how many rows on a kernel beats plain torch.

`tuning_table.json`, which `python -m bench.tune` writes, has an entry for every architecture measured so far (`sm_90`,
`gfx942`). It is read once. Without an entry kernels use `launch_configs`, and `auto` uses no kernel.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

FILE: Final = Path(__file__).with_name("tuning_table.json")


class Configuration(NamedTuple):
    """How a kernel is compiled: no part of what it computes."""

    block: int
    """Rows of a tile."""
    warps: int
    stages: int
    columns: int = 0
    """Of a tile of a hidden layer, where the kernel has one."""


class Case(NamedTuple):
    """What a configuration is chosen by, and whether a kernel is taken, beside the GPU."""

    kernel: str
    """Operator and pass: `graph_attention forward`; for whether a kernel is taken the operator alone."""
    itemsize: int
    """Bytes of a number of the inputs."""
    most: int
    """The largest size (nodes of a graph, states of a recurrence, columns of a row, pairs) that it is for."""


class Measured(NamedTuple):
    """Of one architecture.

    Attributes:
        device: its name, as torch has it.
        configurations: the fastest of those tried.
        from_rows: the rows from which on the kernels of an operator, forward and backward together, were faster than
            plain torch; None where they never were.
    """

    device: str
    configurations: dict[Case, Configuration]
    from_rows: dict[Case, int | None]


@cache
def measured(gpu: str) -> Measured | None:
    """What has been measured on this architecture; None where nothing has.

    Raises ValueError, with the name of the file, where it is not what `bench.tune` writes.
    """
    return read(FILE).get(gpu)


def read(file: Path) -> dict[str, Measured]:
    """Architecture -> what has been measured on it. Raises as `measured` does."""
    try:
        entries: dict[str, Any] = json.loads(file.read_text())
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
            f"{file} is not what `python -m bench.tune` writes ({type(error).__name__}: {error}): restore it, or put "
            "{} into it to do without measurements"
        ) from error


def _case(line: dict[str, Any]) -> Case:
    return Case(str(line["kernel"]), int(line["itemsize"]), int(line["most"]))


def as_json(entry: Measured) -> dict[str, Any]:
    """What `read` reads."""
    return {
        "device": entry.device,
        "configurations": [
            case._asdict() | {"configuration": list(chosen)} for case, chosen in entry.configurations.items()
        ],
        "from_rows": [case._asdict() | {"rows": rows} for case, rows in entry.from_rows.items()],
    }


def fitting(cases: Any, kernel: str, itemsize: int, size: int) -> Case | None:
    """Of these cases the smallest that holds such inputs; None where there is none."""
    found = [case for case in cases if case[:2] == (kernel, itemsize) and size <= case.most]
    return min(found, key=lambda case: case.most, default=None)
