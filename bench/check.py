"""Regression check: this code against the committed results, each regression by its name.

    pgat-fast bench check --exact     # bytes and compiled kernels: the same on every machine
    pgat-fast bench check             # also times and memory, against a result of this kind of machine
    make bench-check

- Bytes that our backends save for the backward pass must equal those of every committed comparison (`bench.compare`)
  and count (`bench.step --steps 0`). CI checks them, too.
- Kernels, compiled offline, must be no worse than in the committed table (`bench.gpu.static`). CI checks two of the
  five targets, and every two values of shape, dtype and target together.
- Times: for every configuration, the newest comparison made on a machine of this kind is repeated with its settings. A
  backend of ours is a regression if the whole interval of its ratio to the first backend lies more than `SLOWER` below
  the committed ratio, and no regression if the whole interval lies above that limit; otherwise more processes are
  measured, and if that does not decide it, it fails as too noisy. Seconds are not compared, so a slow-down that affects
  the first backend equally is not detected.
- Peak memory of our backends, with warm-up and in the steps alone, must not exceed the committed one by more than
  `MORE_MEMORY` and `SLACK_GIB`.

Only files tracked by git count as committed.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from bench.backend_spec import BackendSpec, configure, parse_spec
from bench.compare import KIND, against, compare
from bench.gpu.static import SHARED_LIMITS, against_committed, combinations
from bench.machine import describe
from bench.processes import write
from bench.ratios import Ratio
from bench.result_files import RESULTS, ROOT, Record
from bench.step import count_step
from pgat_fast.errors import BackendError

SLOWER: Final = 0.10
MORE_MEMORY: Final = 0.05
SLACK_GIB: Final = 0.02
ATTEMPTS: Final = 3
"""Maximum number of times a comparison is made until every ratio is decided."""

Fault = str
"""Description of what has become worse."""
NO_COMPARISON: Final[Fault] = (
    "times and memory cannot be checked: no comparison of this kind of machine is committed; make one by "
    "`pgat-fast bench compare --save`, or leave times out by --exact"
)


def is_ours(result: Record) -> bool:
    """Return whether `result` is of a backend of this project, not of the reference it is compared with."""
    return parse_spec(result["backend"]).backend != "reference"


def committed() -> dict[Path, Record]:
    """Return the results of comparisons and counts that git tracks; all of them outside of a repository."""
    results = {}
    for path in _known_to_git() or sorted(RESULTS.glob("*/*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and (result.get("kind") == KIND or result.get("steps") == 0):
            results[path] = result
    return results


def _known_to_git() -> list[Path]:
    command = ["git", "-C", str(RESULTS), "ls-files", "*.json"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [RESULTS / name for name in sorted(names) if (RESULTS / name).exists()]


def settings_of(result: Record) -> tuple[str, list[str], int]:
    """Return configuration, overrides and batch of a comparison, or of a count, from its command."""
    if result.get("kind") == KIND:
        settings = result["settings"]
        return str(ROOT / settings["config"]), settings["overrides"], settings["batch"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[])
    args, _ = parser.parse_known_args(shlex.split(result["command"]))
    return str(ROOT / args.config), args.overrides, result["batch"]


def saved_bytes() -> Iterator[Fault]:
    """Count the bytes saved for the backward pass again, without data; yield differences from the committed results."""
    counted: dict[tuple[str, ...], int] = {}
    for path, result in committed().items():
        config, overrides, batch = settings_of(result)
        for entry in result["results"]:
            expected_bytes = entry.get("saved_for_backward_bytes")
            if expected_bytes is None or not is_ours(entry):
                continue
            spec = replace(parse_spec(entry["backend"]), compiled=None)
            settings = [*overrides, "run.device=cpu", f"run.precision={entry.get('precision') or 'highest'}"]
            key = (str(spec), config, *settings, str(batch))
            try:
                model = configure(spec, config, settings)
            except BackendError as error:
                print(f"{path.name}: {entry['backend']} is not checked: {error}", file=sys.stderr)
                continue
            if key not in counted:
                counted[key] = int(count_step(model, spec, batch)["saved_for_backward_bytes"])
            if counted[key] != expected_bytes:
                yield (
                    f"{path.name}: {entry['backend']} at batch {batch} saves {counted[key]:,} bytes for the backward "
                    f"pass, not {expected_bytes:,}"
                    + ("" if counted[key] > expected_bytes else ": better, so measure and commit it again")
                )


def static_kernels() -> Iterator[Fault]:
    """Compile every kernel offline, and yield what is worse than in the committed table."""
    if find_spec("triton") is None:
        yield "kernels cannot be checked: triton is not installed"
        return
    yield from against_committed(combinations(list(SHARED_LIMITS)))


def of_this_machine() -> dict[Path, Record]:
    """Return the newest committed comparison of each configuration on machines like this: processor, cores and GPU."""
    machine, newest = describe(), dict[str, tuple[Path, Record]]()
    for path, result in committed().items():
        if result.get("kind") != KIND:
            continue
        if any(result["machine"][key] != machine[key] for key in ("processor", "cores", "gpu")):
            continue
        key = json.dumps(settings_of(result))
        if key not in newest or newest[key][1]["machine"]["date"] < result["machine"]["date"]:
            newest[key] = path, result
    return dict(newest.values())


class Verdict(NamedTuple):
    """Faults of one backend, and its undecided ratio, if more measurements are needed to judge it."""

    faults: list[Fault]
    undecided: Fault | None = None


def judge(old: Record, new: Record, first: str) -> Verdict:
    """Judge one backend of ours by its old and its new result; ratios are relative to the backend `first`."""
    name = new["backend"]
    if "error" in new:
        return Verdict([] if "error" in old else [f"{name}: {new['error']}"])
    faults = []
    for key, words in (("peak_memory_gib", "peak memory"), ("steps_peak_memory_gib", "peak memory in the steps")):
        if key in old and old[key] * (1 + MORE_MEMORY) + SLACK_GIB < new[key]:
            faults.append(f"{name}: {words} {new[key] * 1024:.0f} MiB, it was {old[key] * 1024:.0f}")
    if "times_faster" not in old or "times_faster" not in new:
        return Verdict(faults)
    ratio, old_estimate = Ratio.of(new["times_faster"]), old["times_faster"]["estimate"]
    words = f"{name}: {ratio.estimate:.3g} times faster than {first} ({ratio.low:.3g} to {ratio.high:.3g}), it was"
    if ratio.high < old_estimate * (1 - SLOWER):
        return Verdict([*faults, f"{words} {old_estimate:.3g}"])
    if ratio.low < old_estimate * (1 - SLOWER):
        return Verdict(faults, f"{words} {old_estimate:.3g}: too noisy to tell")
    return Verdict(faults)


def measured(committed: Record, write_to: str | None, repeat: Callable[..., Record] = compare) -> Iterator[Fault]:
    """Repeat a comparison, longer where it is too noisy, write it to a file, if one is named, and yield the faults."""
    config, overrides, batch = settings_of(committed)
    settings, old = committed["settings"], {result["backend"]: result for result in committed["results"]}
    first = committed["results"][0]["backend"]
    names = [name for name in old if name == first or is_ours(old[name])]
    new: dict[str, Record] = {}
    for attempt in range(1, ATTEMPTS + 1):
        specs: list[BackendSpec] = [parse_spec(name) for name in names]
        comparison = repeat(config, overrides, specs, batch, settings["steps"], settings["processes"])
        for result in comparison["results"]:
            new[result["backend"]] = _together(new.get(result["backend"]), result)
        if attempt == 1:
            write(write_to, "bench.check", comparison)
        _compare_again(new, first)
        verdicts = {name: judge(old[name], new[name], first) for name in new if name != first}
        undecided = [name for name, verdict in verdicts.items() if verdict.undecided]
        if not undecided or attempt == ATTEMPTS:
            break
        print(f"too noisy, so these are measured longer: {', '.join(undecided)}", file=sys.stderr)
        names = [first, *undecided]
    if "error" in new[first]:
        yield f"{first}: {new[first]['error']}"
    for verdict in verdicts.values():
        yield from verdict.faults
        if verdict.undecided:
            yield verdict.undecided


def _together(earlier: Record | None, later: Record) -> Record:
    """Return the record of a backend that was measured twice, with the processes of both."""
    if earlier is None or "error" in earlier or "error" in later:
        return later
    return {**later, "process_seconds": [*earlier["process_seconds"], *later["process_seconds"]]}


def _compare_again(new: dict[str, Record], first: str) -> None:
    """Update the ratios, from all processes of a backend and those of the first one measured with them."""
    for name, result in new.items():
        if name == first or "error" in result or "error" in new[first]:
            continue
        matching = {**new[first], "process_seconds": new[first]["process_seconds"][: len(result["process_seconds"])]}
        times = against(matching, result)
        if times is not None:
            result["times_faster"] = times.record()


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench check`: print what has become worse. Returns 1 if anything has, or could not be checked."""
    checks = [("bytes saved for the backward pass", saved_bytes()), ("kernels, compiled offline", static_kernels())]
    if not args.exact:
        comparisons = of_this_machine()
        checks += [
            (f"times and memory against {path.parent.name}/{path.name}", measured(committed, args.json))
            for path, committed in comparisons.items()
        ]
        if not comparisons:
            checks.append(("times and memory", iter([NO_COMPARISON])))
    faults = 0
    for title, check_faults in checks:
        print(f"{title} ...", file=sys.stderr, flush=True)
        for fault in check_faults:
            print(fault, flush=True)
            faults += 1
    print(f"{faults} regressions or failed checks" if faults else "nothing has become worse")
    return int(faults > 0)
