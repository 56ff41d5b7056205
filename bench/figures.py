"""Tables and figures of `docs/performance.md`, and the table of speed in the README, from the committed results."""

import json
from collections.abc import Callable
from typing import Final

from bench.compare import faster_in_words, saved_bytes
from bench.gpu.cost_model import LAUNCH_SECONDS
from bench.gpu.measure import MOST_SECONDS
from bench.measure import fit_exponent
from bench.result_files import RESULTS, ROOT, Record, load, newest
from pgat_fast.errors import DataError
from pgat_kernels.tuning_table import FILE, read

ZEN5, ZEN4, ZEN3 = (f"amd-epyc-zen{generation}-2-cores" for generation in (5, 4, 3))
"""Machines; Zen 3 lacks AVX-512, and there `torch` does not compile the whole model."""
MACHINES: Final = {"zen5": ZEN5, "zen4": ZEN4, "zen3": ZEN3}

Figure = Callable[..., str]
FIGURES: Final[dict[str, Figure]] = {}
"""Name -> function that returns what `{NAME}` stands for in `bench/performance_template.md`, or `{NAME:ARGUMENT}`."""


def figure(function: Figure) -> Figure:
    """Add `function` to `FIGURES`."""
    FIGURES[function.__name__] = function
    return function


def combiner_of(record: Record) -> str:
    """Return the combiner of the configuration that a result's command names."""
    if "quickstart" in record["command"]:
        return "batched (quickstart)"
    return "hierarchical" if "celestial_enhanced" in record["command"] else "batched"


def result_of(record: Record, backend: str) -> Record:
    """Return the result of one backend."""
    backend_result: Record = next(result for result in record["results"] if result["backend"] == backend)
    return backend_result


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


def span(values: list[float], form: str) -> str:
    """Format a range as `LOW to HIGH`, or as one number if both are formatted alike."""
    least, most = (form.format(value) for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


# --- tables -----------------------------------------------------------------------------------------------------------


@figure
def steps(machine: str) -> str:
    """Return training steps of all backends on a machine."""
    rows = []
    for name in ("quickstart_batch8", "batched_batch1", "batched_batch4", "hierarchical_batch1"):
        if newest(f"step_{name}.json", MACHINES[machine]) is None:
            continue
        record = load(f"step_{name}", MACHINES[machine])
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


@figure
def saved_for_backward() -> str:
    """Return the saved bytes and the parameters of both combiners."""
    rows = []
    for combiner in ("batched", "hierarchical"):
        results = load(f"saved_for_backward_{combiner}")["results"]
        for result in results:
            saved = result["saved_for_backward_bytes"]
            less = times(results[0]["saved_for_backward_bytes"] / saved)
            rows.append(
                [combiner, f"{result['parameters']:,}", f"`{result['backend']}`", f"{saved / 1e9:.2f} GB", less]
            )
    return table(["combiner", "parameters", "backend", "saved for backward", "times less"], rows)


@figure
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


@figure
def comparison_machine() -> str:
    """Return the machine of the newest comparison."""
    machine = newest_comparison()["machine"]
    return f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores"


@figure
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


@figure
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


@figure
def scaling_setting(name: str) -> str:
    """Return a setting of the scaling study."""
    return str(load("scaling")["settings"][name])


@figure
def combiner_lines() -> str:
    """Return linearity, peak memory and fraction of the peak of both combiners."""
    rows = []
    for name in ("batched", "hierarchical"):
        (result,) = load(f"combiner_{name}")["results"]
        days = [size["steps"] for size in result["sizes"]]
        executed = [100 * size["fraction_of_matrix_peak"]["executed"] for size in result["sizes"]]
        rows.append(
            [
                f"{name}, {days[0]} to {days[-1]:,} days",
                f"within {abs(result['lines']['seconds']['largest_deviation_percent']):.0f} %",
                f"{span([size['peak_memory_gib'] for size in result['sizes']], '{:.1f}')} GiB",
                f"{span(executed, '{:.0f}')} %",
            ]
        )
    return table(["combiner", "time, deviation from proportional", "peak memory", "of the machine's products"], rows)


@figure
def roofline() -> str:
    """Return the fractions of the roof: those of the combiners, and the range of the operators."""
    points, rows = load("roofline")["points"], []
    for point in points:
        if point["what"] == "combiner":
            name = f"combiner {point['shape']}, `{point['by']}`, {point['timesteps']} days"
            rows.append([name, f"{100 * point['fraction_of_roof']:.0f} %"])
    operator_points = [point for point in points if point["what"] != "combiner" and point["by"] == "plain"]
    operator_count = len({point["what"] for point in operator_points})
    fractions = [100 * point["fraction_of_roof"] for point in operator_points]
    name = f"{operator_count} operators in {len(operator_points)} sizes, each alone, by autograd of plain torch"
    rows.append([name, f"{span(fractions, '{:.0f}')} %"])
    return table(["forward and backward", "of the machine's limit"], rows)


@figure
def ranks() -> str:
    """Return the efficiency on several GPUs, on paper."""
    papers, windows = load("ranks")["on_paper"], ranks_batch()
    head = ["GPUs"]
    for paper in papers:
        name = "hierarchical" if "celestial_enhanced" in paper["config"] else "batched"
        size = f"{paper['gradient_bytes'] / 1e6:.0f} MB of gradients"
        head += [f"{name} ({size}), {windows} windows a GPU", f"{name}, {windows} windows in all, divided"]
    rows = []
    for paper_rows in zip(*(paper["rows"] for paper in papers), strict=True):
        fractions = [row[kind] for row in paper_rows for kind in ("weak", "strong")]
        cells = ["-" if fraction is None else f"{100 * fraction:.0f} %" for fraction in fractions]
        rows.append([str(paper_rows[0]["gpus"]), *cells])
    return table(head, rows)


@figure
def ranks_batch() -> str:
    """Return the windows of the model of several GPUs."""
    return str(load("ranks")["assumptions"]["batch"])


@figure
def ranks_check(key: str) -> str:
    """Return a setting of the check of that model."""
    return str(load("ranks")["check"][key])


@figure
def ranks_messages() -> str:
    """Return measured and predicted times at the largest size, for every number of processes."""
    rows = load("ranks")["check"]["all_reduce"]
    largest = max(row["bytes"] for row in rows)
    return ", ".join(
        f"{row['processes']} processes {1e3 * row['seconds']:.0f} ms ({1e3 * row['predicted']:.0f} predicted)"
        for row in rows
        if row["bytes"] == largest
    )


@figure
def ranks_steps() -> str:
    """Return measured and predicted training steps of several processes."""
    rows = [
        [str(row["processes"]), *(f"{1e3 * row[key]:.0f} ms" for key in ("seconds", "predicted"))]
        for row in load("ranks")["check"]["steps"]
    ]
    return table(["processes", "measured", "predicted"], rows)


@figure
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


@figure
def peak(machine: str) -> str:
    """Return the peak of float32 products in GFLOP/s, rounded to ten."""
    records = [load(f"step_{combiner}_batch1", MACHINES[machine]) for combiner in ("batched", "hierarchical")]
    peaks = [record["matrix_peak"]["highest"]["flop_per_second"] for record in records]
    return f"{round(sum(peaks) / len(peaks) / 1e9, -1):.0f}"


def compile_times(machine: str, key: str) -> list[float]:
    """Return seconds of compiling on a machine; without a second process there is no time with the compiler's cache."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob(f"{MACHINES[machine]}/*/step_*.json")
    ]
    all_seconds = [result["compile"][key] for record in records for result in record["results"] if "compile" in result]
    return [seconds for seconds in all_seconds if seconds is not None]


@figure
def compile_minutes(machine: str) -> str:
    """Return the minutes of compiling the whole model."""
    return f"{span([value / 60 for value in compile_times(machine, 'seconds')], '{:.0f}')} minutes"


@figure
def compile_seconds(key: str) -> str:
    """Return the seconds of compiling the operators."""
    return f"{span(compile_times('zen3', key), '{:.0f}')} seconds"


@figure
def hierarchical_fraction() -> str:
    """Return the fraction of the peak of the hierarchical combiner, on Zen 4."""
    fast = result_of(load("step_hierarchical_batch1", ZEN4), "torch:highest")
    return f"{100 * fast['fraction_of_matrix_peak']:.0f} %"


@figure
def hierarchical_limit() -> str:
    """Return the speed-up over the reference if only the executed products took time, at the peak."""
    record = load("step_hierarchical_batch1", ZEN4)
    fastest = result_of(record, "torch:highest")["flops"] / record["matrix_peak"]["highest"]["flop_per_second"]
    return times(step_seconds(record, "reference:highest") / fastest)


@figure
def compiled_reference(what: str) -> str:
    """Return one of the figures of the reference under torch.compile."""
    record = load("compiled_reference_batched_batch1")
    plain, compiled = (result_of(record, name) for name in ("reference:highest", "reference:highest:compiled"))
    seconds, compiled_seconds = (result["step_seconds"]["median"] for result in (plain, compiled))
    return {
        "breaks": str(compiled["compile"]["graph_breaks"]),
        "compile": f"{compiled['compile']['seconds'] / 60:.0f} minutes",
        "times": times(seconds / compiled_seconds),
        "seconds": f"{seconds:.2f} to {compiled_seconds:.2f} s",
        "memory": f"{compiled['peak_memory_gib']:.2f} GiB instead of {plain['peak_memory_gib']:.2f}",
    }[what]


@figure
def model_steps() -> str:
    """Return the steps of an epoch that the cost model assumes."""
    return str(load("cost_model_batched")["epoch_steps"])


def _seconds_of_an_epoch(combiner: str, total: str) -> str:
    record = load(f"cost_model_{combiner}")
    return f"{record['gpus']['H100']['totals'][total] * record['epoch_steps']:.0f} s"


@figure
def model_epoch(combiner: str) -> str:
    """Return the modelled seconds of an epoch."""
    return _seconds_of_an_epoch(combiner, "seconds")


@figure
def model_least(combiner: str) -> str:
    """Return the modelled seconds of an epoch of kernels and products alone."""
    return _seconds_of_an_epoch(combiner, "kernels_and_products_seconds")


@figure
def launch_microseconds() -> str:
    """Return the least microseconds of a launch in the model."""
    return f"{1e6 * LAUNCH_SECONDS:g}"


@figure
def model_launches(combiner: str) -> str:
    """Return the launches of a modelled step."""
    return f"{load(f'cost_model_{combiner}')['gpus']['H100']['totals']['launches']:,}"


@figure
def gpu_minutes() -> str:
    """Return the minutes of `make gpu`."""
    return f"{MOST_SECONDS / 60:g}"


@figure
def monitoring() -> str:
    """Return the microseconds that monitoring adds to a step."""
    benchmarks = load("monitoring")["benchmarks"]
    return span([entry["extra_info"]["microseconds_per_step_median"] for entry in benchmarks], "{:.0f}")


@figure
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


@figure
def bf16_rmse(what: str) -> str:
    """Return those `changes`, or the number of `seeds`."""
    changes = rmse_changes()
    return ", ".join(changes) if what == "changes" else str(len(changes))


@figure
def batches_per_second(name: str) -> str:
    """Return the batches per second of a benchmark of the data pipeline."""
    benchmarks = {entry["name"]: entry["extra_info"] for entry in load("data_pipeline")["benchmarks"]}
    return f"{benchmarks[name]['batches_per_second_median']:,.0f}"


@figure
def reference_again() -> str:
    """Return the seconds of a reference step in two results of Zen 4."""
    records = [load(name, ZEN4) for name in ("compiled_reference_batched_batch1", "step_batched_batch1")]
    return " and ".join(f"{value:.1f}" for value in sorted(step_seconds(r, "reference:highest") for r in records))


@figure
def roof(what: str) -> str:
    """Return a roof of the machine: its float32 `peak` in GFLOP/s, or its `bandwidth` in GB/s."""
    record = load("roofline")
    rate = record["bandwidth"]["bytes_per_second"]
    return f"{(record['matrix_peak']['fp32']['flop_per_second'] if what == 'peak' else rate) / 1e9:.0f}"


@figure
def saved_batch() -> str:
    """Return the batch for which saved bytes were counted."""
    return str(load("saved_for_backward_batched")["batch"])
