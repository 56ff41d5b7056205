"""Tables and figures of `docs/performance.md`, and the table of speed in the README, from the committed results.

`bench/performance_template.md` uses the functions and constants of this module by their names.
"""

import json
from collections.abc import Iterable
from typing import Final

from bench.compare import faster_in_words, saved_bytes
from bench.measure import fit_exponent
from bench.result_files import RESULTS, ROOT, Record, load, newest
from pgat_fast.errors import DataError
from pgat_kernels.tuning_table import FILE, read

ZEN5, ZEN4, ZEN3 = (f"amd-epyc-zen{generation}-2-cores" for generation in (5, 4, 3))
"""Machines; Zen 3 lacks AVX-512, and there `torch` does not compile the whole model."""
COMBINERS: Final = ("batched", "hierarchical")


def combiner_of(record: Record) -> str:
    """Return the combiner of the configuration that a result's command names."""
    if "quickstart" in record["command"]:
        return "batched (quickstart)"
    return "hierarchical" if "celestial_enhanced" in record["command"] else "batched"


def result_of(record: Record, backend: str) -> Record:
    """Return the result of one backend."""
    return next(result for result in record["results"] if result["backend"] == backend)


def step_seconds(record: Record, backend: str) -> float:
    """Return the median seconds of a step of one backend."""
    return float(result_of(record, backend)["step_seconds"]["median"])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def times(number: float) -> str:
    """Format a factor: `5.4`."""
    return f"{number:.1f}"


def percent(fraction: float) -> str:
    """Format a fraction: `62 %`."""
    return f"{100 * fraction:.0f} %"


def billions(number: float) -> str:
    """Format a number as billions: `227`."""
    return f"{number / 1e9:.0f}"


def span(values: Iterable[float], form: str = "{:.0f}", unit: float = 1.0) -> str:
    """Format a range, in multiples of `unit`, as `LOW to HIGH`, or as one number if both are formatted alike."""
    ordered = sorted(values)
    least, most = (form.format(value / unit) for value in (ordered[0], ordered[-1]))
    return least if least == most else f"{least} to {most}"


# --- tables -----------------------------------------------------------------------------------------------------------


def steps(machine: str) -> str:
    """Return training steps of all backends on a machine."""
    rows = []
    for name in ("quickstart_batch8", "batched_batch1", "batched_batch4", "hierarchical_batch1"):
        if newest(f"step_{name}.json", machine) is None:
            continue
        record = load(f"step_{name}", machine)
        for result in record["results"]:
            less = result.get("times_less_than_first", {"step_seconds": 1, "peak_memory_gib": 1})
            rows.append(
                [
                    f"{combiner_of(record)}, {record['batch']}",
                    f"`{result['backend']}`",
                    f"{record['steps']} x {record['rounds']}",
                    f"{result['step_seconds']['median']:.2f}",
                    times(less["step_seconds"]),
                    f"{result['peak_memory_gib']:.2f} GiB",
                    times(less["peak_memory_gib"]),
                ]
            )
    head = ["combiner, batch", "backend", "steps x processes", "seconds a step", "times faster"]
    return table([*head, "peak memory", "times less memory"], rows)


SPEED: Final = (
    (ZEN3, "Zen 3, AVX2", "quickstart_batch8", "torch:highest:compiled:kept", "torch:highest:eager"),
    (ZEN3, "Zen 3, AVX2", "batched_batch1", "torch:highest:eager:kept", "torch:highest:eager"),
    (ZEN3, "Zen 3, AVX2", "hierarchical_batch1", "torch:highest:compiled:kept", "torch:highest:eager"),
    (ZEN5, "Zen 5, AVX-512", "batched_batch4", "torch:highest", "torch:highest"),
)
"""Rows of the README's table: machine, its processor, sizes, the fastest float32 backend there, one that recomputes."""


def speed() -> str:
    """Return the README's table: training steps of the reference and the fast backend."""
    rows = []
    for machine, processor, name, backend, recomputing in SPEED:
        record = load(f"step_{name}", machine)
        backends = [record["results"][0]["backend"], backend, recomputing]
        seconds, fast_seconds = (step_seconds(record, name) for name in backends[:2])
        rows.append(
            [
                f"{combiner_of(record)}, {record['batch']}",
                processor,
                f"{seconds:.3g} s",
                f"{fast_seconds:.3g} s",
                f"**{times(seconds / fast_seconds)}**",
                *(f"{result_of(record, name)['peak_memory_gib']:.2f} GiB" for name in backends),
            ]
        )
    head = ["combiner, batch", "processor", "reference", "pgat_fast", "times faster", "peak memory of the reference"]
    return table([*head, "of pgat_fast", "with `run.recompute=on`"], rows)


def saved_for_backward() -> str:
    """Return the saved bytes and the parameters of both combiners."""
    rows = []
    for combiner in COMBINERS:
        results = load(f"saved_for_backward_{combiner}")["results"]
        for result in results:
            saved = result["saved_for_backward_bytes"]
            less = times(results[0]["saved_for_backward_bytes"] / saved)
            rows.append(
                [combiner, f"{result['parameters']:,}", f"`{result['backend']}`", f"{saved / 1e9:.2f} GB", less]
            )
    return table(["combiner", "parameters", "backend", "saved for backward", "times less"], rows)


def accuracy() -> str:
    """Return the errors of each precision."""
    (errors,) = (record["errors"] for record in load("accuracy")["errors"].values())
    rows = [[f"`{name}`", f"{error['forecast']:.1e}", f"{error['gradients']:.1e}"] for name, error in errors.items()]
    return table(["backend, precision", "forecast", "gradients"], rows)


def newest_comparison() -> Record:
    """Return the newest comparison at the quickstart's sizes. Raises DataError if there is none."""
    comparisons: list[Record] = [
        json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*/*/comparison*.json")
    ]
    at_quickstart = [record for record in comparisons if record["settings"]["config"] == "configs/quickstart.yaml"]
    if not at_quickstart:
        raise DataError("bench/results has no comparison of the quickstart: run `pgat-fast bench compare --save`")
    return max(at_quickstart, key=lambda record: str(record["machine"]["date"]))


def comparison() -> str:
    """Return the table of the newest comparison."""
    results, rows = newest_comparison()["results"], []
    for result in results:
        if "error" in result:
            rows.append([f"`{result['backend']}`", result["error"], "", "", "", ""])
            continue
        rows.append(
            [
                f"`{result['backend']}`",
                f"{1e3 * result['step_seconds']['median']:.0f} ms",
                faster_in_words(result, results[0]),
                f"{1024 * result['peak_memory_gib']:.0f} MiB",
                f"{1024 * result['steps_peak_memory_gib']:.0f} MiB",
                f"{saved_bytes(result) / 1e6:.2f} MB",
            ]
        )
    head = ["backend", "a step", "times faster (and what to expect of another run)", "peak memory", "in the steps"]
    return table([*head, "saved for backward"], rows)


def growth_results() -> list[Record]:
    """Return the newest scaling results of each quantity and backend, without failed sizes, with exponents fitted.

    Exponents are fitted anew, because those in older files come from another method.
    """
    results: dict[tuple[str, str], Record] = {}
    files = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*/*/scaling*.json")]
    for file in sorted(files, key=lambda record: str(record["machine"]["date"])):
        for result in file["results"]:
            pairs = list(zip(result["sizes"], result["records"], strict=True))
            points = [(size, record) for size, record in pairs if "error" not in record]
            sizes, seconds = [size for size, _ in points], [record["seconds"]["median"] for _, record in points]
            memory = [record["memory_gib"] for _, record in points]
            results[result["what"], result["backend"]] = {
                **result,
                "points": points,
                "failed": [str(size) for size, record in pairs if "error" in record],
                "seconds": seconds,
                "memory": memory,
                "exponents": [fit_exponent(sizes, seconds), fit_exponent(sizes, memory)],
            }
    return list(results.values())


def scaling() -> str:
    """Return the exponents, and the figures of the largest size."""
    rows = []
    for result in growth_results():
        size, largest = result["points"][-1]
        system = f", {100 * largest['system_share']:.0f} % of it the system's" if "system_share" in largest else ""
        failed = f" (at {', '.join(result['failed'])} it failed)" if result["failed"] else ""
        rows.append(
            [
                f"{result['what']}, {result['sizes'][0]} to {result['sizes'][-1]}",
                f"`{result['backend']}`",
                *("not known" if power is None else f"{power:.1f}" for power in result["exponents"]),
                f"{result['seconds'][-1]:.3g} s{system}, {largest['memory_gib']:.2f} GiB at {size}{failed}",
            ]
        )
    return table(["what grows", "backend", "exponent of time", "of memory", "at the largest size"], rows)


def combiner_lines() -> str:
    """Return linearity, peak memory and fraction of the peak of both combiners."""
    rows = []
    for name in COMBINERS:
        (result,) = load(f"combiner_{name}")["results"]
        days = [size["steps"] for size in result["sizes"]]
        rows.append(
            [
                f"{name}, {days[0]} to {days[-1]:,} days",
                f"within {abs(result['lines']['seconds']['largest_deviation_percent']):.0f} %",
                f"{span((size['peak_memory_gib'] for size in result['sizes']), '{:.1f}')} GiB",
                f"{span((size['fraction_of_matrix_peak']['executed'] for size in result['sizes']), unit=0.01)} %",
            ]
        )
    return table(["combiner", "time, deviation from proportional", "peak memory", "of the machine's products"], rows)


def roofline() -> str:
    """Return the fractions of the roof: those of the combiners, and the range of the operators."""
    points, rows = load("roofline")["points"], []
    for point in points:
        if point["what"] == "combiner":
            name = f"combiner {point['shape']}, `{point['by']}`, {point['timesteps']} days"
            rows.append([name, percent(point["fraction_of_roof"])])
    operator_points = [point for point in points if point["what"] != "combiner" and point["by"] == "plain"]
    operator_count = len({point["what"] for point in operator_points})
    name = f"{operator_count} operators in {len(operator_points)} sizes, each alone, by autograd of plain torch"
    rows.append([name, f"{span((point['fraction_of_roof'] for point in operator_points), unit=0.01)} %"])
    return table(["forward and backward", "of the machine's limit"], rows)


def ranks() -> str:
    """Return the efficiency on several GPUs, on paper."""
    record = load("ranks")
    papers, windows = record["on_paper"], record["assumptions"]["batch"]
    head = ["GPUs"]
    for paper in papers:
        name = "hierarchical" if "celestial_enhanced" in paper["config"] else "batched"
        size = f"{paper['gradient_bytes'] / 1e6:.0f} MB of gradients"
        head += [f"{name} ({size}), {windows} windows a GPU", f"{name}, {windows} windows in all, divided"]
    rows = []
    for paper_rows in zip(*(paper["rows"] for paper in papers), strict=True):
        fractions = [row[kind] for row in paper_rows for kind in ("weak", "strong")]
        cells = ["-" if fraction is None else percent(fraction) for fraction in fractions]
        rows.append([str(paper_rows[0]["gpus"]), *cells])
    return table(head, rows)


def ranks_messages() -> str:
    """Return measured and predicted times at the largest size, for every number of processes."""
    rows = load("ranks")["check"]["all_reduce"]
    largest = max(row["bytes"] for row in rows)
    return ", ".join(
        f"{row['processes']} processes {1e3 * row['seconds']:.0f} ms ({1e3 * row['predicted']:.0f} predicted)"
        for row in rows
        if row["bytes"] == largest
    )


def ranks_steps() -> str:
    """Return measured and predicted training steps of several processes."""
    rows = [
        [str(row["processes"]), *(f"{1e3 * row[key]:.0f} ms" for key in ("seconds", "predicted"))]
        for row in load("ranks")["check"]["steps"]
    ]
    return table(["processes", "measured", "predicted"], rows)


def gpu() -> str:
    """Return training steps on a GPU, if they have been measured."""
    path = newest("gpu.json")
    if path is None:
        return "Figures of GPUs: not measured yet."
    record = load("gpu")
    rows = [
        [name, f"{item['step_seconds']:.3g}", f"{item['epoch_seconds']:.3g}", f"{item['peak_memory_gib']:.2f} GiB"]
        for section, name, item in record["records"]
        if section == "steps" and item and item["ok"]
    ]
    head = ["configuration, backend", "seconds a step", "seconds an epoch", "peak memory"]
    return f"On {record['machine']['gpu']} (`{path.with_suffix('.md').relative_to(ROOT)}`):\n\n{table(head, rows)}"


# --- figures in sentences ---------------------------------------------------------------------------------------------


def peak(machine: str) -> str:
    """Return the peak of float32 products in GFLOP/s, rounded to ten."""
    records = [load(f"step_{combiner}_batch1", machine) for combiner in COMBINERS]
    peaks = [record["matrix_peak"]["highest"]["flop_per_second"] for record in records]
    return f"{round(sum(peaks) / len(peaks) / 1e9, -1):.0f}"


def compile_times(machine: str, key: str) -> list[float]:
    """Return seconds of compiling on a machine; without a second process there is no time with the compiler's cache."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"{machine}/*/step_*.json")]
    all_seconds = [result["compile"][key] for record in records for result in record["results"] if "compile" in result]
    return [seconds for seconds in all_seconds if seconds is not None]


def hierarchical_limit() -> str:
    """Return the speed-up over the reference if only the executed products took time, at the peak, on Zen 4."""
    record = load("step_hierarchical_batch1", ZEN4)
    fastest = result_of(record, "torch:highest")["flops"] / record["matrix_peak"]["highest"]["flop_per_second"]
    return times(step_seconds(record, "reference:highest") / fastest)


def model_epoch(combiner: str, total: str = "seconds") -> str:
    """Return the modelled seconds of an epoch; `total` is a key of the totals of `bench.gpu.cost_model`."""
    record = load(f"cost_model_{combiner}")
    return f"{record['gpus']['H100']['totals'][total] * record['epoch_steps']:.0f} s"


def listed_kernels() -> str:
    """Return the architectures for which it is listed from which sizes kernels are faster, with the source."""
    return ", ".join(f"{gpu} ({entry.source})" for gpu, entry in read(FILE).items())


def rmse_changes() -> list[str]:
    """Return the change of the RMSE with bf16 in percent, for every seed."""
    return [
        f"{100 * (training['rmse_ratio'] - 1):+.2f}"
        for training in load("accuracy")["trained"]
        if training["precision"] == "bf16"
    ]


def batches_per_second(name: str) -> str:
    """Return the batches per second of a benchmark of the data pipeline."""
    benchmarks = {entry["name"]: entry["extra_info"] for entry in load("data_pipeline")["benchmarks"]}
    return f"{benchmarks[name]['batches_per_second_median']:,.0f}"


def reference_again() -> str:
    """Return the seconds of a reference step in two results of Zen 4."""
    records = [load(name, ZEN4) for name in ("compiled_reference_batched_batch1", "step_batched_batch1")]
    return " and ".join(f"{value:.1f}" for value in sorted(step_seconds(r, "reference:highest") for r in records))
