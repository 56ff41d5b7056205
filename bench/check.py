"""Has anything become worse: this code against the committed results, each regression by its name.

    pgat-fast bench check --exact     # bytes and compiled kernels: the same on every machine; what CI runs
    pgat-fast bench check             # also times and memory, against a result of this kind of machine
    make bench-check

- Bytes that our backends save for the backward pass are exactly those of every committed comparison (`bench.compare`)
  and count (`bench.step --steps 0`).
- Kernels, compiled offline, are no worse than in the committed table (`bench.kernels_static`).
- Times: the newest comparison (`bench.compare`) of a machine of this kind is made again with its settings. A ratio to
  the first backend is a regression where its whole interval lies `SLOWER` below the committed ratio. Seconds are not
  compared. What is too noisy to tell counts as failed, by that name.
- Peak memory: more than `MORE_MEMORY` above the committed one, and `SLACK_GIB`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.compare import KIND, RESULTS, ROOT, compare
from bench.kernels_static import SHARED_LIMITS, against_committed
from bench.machine import describe
from bench.processes import Record, write
from bench.step import count_step
from bench.variants import configure, parse_variant

SLOWER: Final = 0.05
MORE_MEMORY: Final = 0.10
SLACK_GIB: Final = 0.05

Fault = str
"""What has become worse, in words."""


def committed() -> dict[Path, Record]:
    """The results of comparisons and of counts."""
    found = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and (result.get("kind") == KIND or result.get("steps") == 0):
            found[path] = result
    return found


def settings_of(result: Record) -> tuple[str, list[str], int]:
    """Configuration, overrides and batch of a comparison or a count, whose command has them."""
    if result.get("kind") == KIND:
        settings = result["settings"]
        return str(ROOT / settings["config"]), settings["overrides"], settings["batch"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[])
    args, _ = parser.parse_known_args(shlex.split(result["command"]))
    return str(ROOT / args.config), args.overrides, result["batch"]


def saved_bytes() -> Iterator[Fault]:
    """Count again, on tensors without data, what every committed result says is saved for the backward pass."""
    counted: dict[tuple[str, ...], int] = {}
    for path, result in committed().items():
        config, overrides, batch = settings_of(result)
        for one in result["results"]:
            if "error" in one or parse_variant(one["backend"]).backend == "reference":
                continue
            variant = replace(parse_variant(one["backend"]), compiled=None)
            key = (str(variant), config, *overrides, str(batch))
            if key not in counted:
                model = configure(variant, config, overrides)
                counted[key] = int(count_step(model, variant, batch)["saved_for_backward_bytes"])
            if counted[key] != one["saved_for_backward_bytes"]:
                yield (
                    f"{path.name}: {one['backend']} at batch {batch} saves {counted[key]:,} bytes for the backward "
                    f"pass, not {one['saved_for_backward_bytes']:,}"
                )


def static_kernels() -> Iterator[Fault]:
    """Compile every kernel offline and compare it with the committed table."""
    if find_spec("triton") is None:
        print("kernels are not checked: triton is not installed", file=sys.stderr)
        return
    yield from against_committed(RESULTS / "kernels_static.json", list(SHARED_LIMITS))


def of_this_machine() -> tuple[Path, Record] | None:
    """The newest committed comparison of a machine of this kind: the same processor, cores and GPU."""
    own = describe()
    found = [
        (path, result)
        for path, result in committed().items()
        if result.get("kind") == KIND
        and all(result["machine"][key] == own[key] for key in ("processor", "cores", "gpu"))
    ]
    return max(found, key=lambda pair: str(pair[1]["machine"]["date"]), default=None)


def measured(before: Record, json_file: str | None) -> Iterator[Fault]:
    """Measure a comparison again, and write it into `json_file`, if there is one."""
    config, overrides, batch = settings_of(before)
    settings = before["settings"]
    variants = [parse_variant(one["backend"]) for one in before["results"]]
    now = compare(config, overrides, variants, batch, settings["steps"], settings["processes"])
    write(Path(json_file) if json_file else None, "bench.check", now)
    yield from worse(before["results"], now["results"])


def worse(before: list[Record], now: list[Record]) -> Iterator[Fault]:
    """What of `now` is worse than `before`: the same backends, in the same order."""
    for old, new in zip(before, now, strict=True):
        name = new["backend"]
        if "error" in new:
            if "error" not in old:
                yield f"{name}: {new['error']}"
            continue
        if "error" in old:
            continue
        if old["peak_memory_gib"] * (1 + MORE_MEMORY) + SLACK_GIB < new["peak_memory_gib"]:
            yield f"{name}: peak memory {new['peak_memory_gib']:.3g} GiB, it was {old['peak_memory_gib']:.3g}"
        if "times_faster" not in new:
            continue
        ratio, known = new["times_faster"], old["times_faster"]["estimate"]
        if ratio["noisy"]:
            yield f"{name}: too noisy to tell ({ratio['low']:.3g} to {ratio['high']:.3g} times faster)"
        elif ratio["high"] < known * (1 - SLOWER):
            yield (
                f"{name}: {ratio['estimate']:.3g} times faster than {now[0]['backend']} "
                f"({ratio['low']:.3g} to {ratio['high']:.3g}), it was {known:.3g}"
            )


def run(args: argparse.Namespace) -> int:
    """`pgat-fast bench check`: print what has become worse. Returns 1 where something has."""
    faults = []

    def look(what: str, found: Iterator[Fault]) -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)
        for fault in found:
            print(fault, flush=True)
            faults.append(fault)

    look("bytes saved for the backward pass", saved_bytes())
    look("kernels, compiled offline", static_kernels())
    if not args.exact:
        known = of_this_machine()
        if known is None:
            print(
                "times and memory: no comparison of this kind of machine is committed (pgat-fast bench compare --save)"
            )
        else:
            look(f"times and memory against {known[0].name}", measured(known[1], args.json))
    print("nothing has become worse" if not faults else f"{len(faults)} worse than committed")
    return int(bool(faults))
