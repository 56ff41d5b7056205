"""Tables and figures of `docs/performance.md`, and the table of speed in the README, from the committed results."""

import json
from collections.abc import Callable
from typing import Final

from bench.compare import faster_in_words, saved_bytes
from bench.gpu.measure import MOST_SECONDS
from bench.gpu.time_model import EPOCH_STEPS
from bench.result_files import RESULTS, ROOT, Record, load, newest
from bench.studies.ranks import KINDS
from bench.studies.scaling import DAYS, TIMESTEPS, summarize
from pgat_fast.errors import DataError
from pgat_kernels.tuning_table import FILE

QUICKSTART: Final = "configs/quickstart.yaml"

ZEN5, ZEN4, ZEN3 = (f"amd-epyc-zen{generation}-2-cores" for generation in (5, 4, 3))
"""Machines; Zen 3 lacks AVX-512, and there `torch` does not compile the whole model."""


def combiner_of(record: Record) -> str:
    """Return the combiner of the configuration that a result's command names."""
    if "quickstart" in record["command"]:
        return "batched (quickstart)"
    return "hierarchical" if "celestial_enhanced" in record["command"] else "batched"


def result_of(record: Record, backend: str) -> Record:
    """Return the result of one backend."""
    backend_result: Record = next(result for result in record["results"] if result["backend"] == backend)
    return backend_result


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def times(number: float) -> str:
    """Format a factor: `5.4`."""
    return f"{number:.1f}"


def span(values: list[float], form: str) -> str:
    """Format a range as `LOW to HIGH`, or as one number if both are formatted alike."""
    low, high = (form.format(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


# --- tables -----------------------------------------------------------------------------------------------------------


def fast_steps(machine: str) -> str:
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
        reference, fast, small = record["results"][0], result_of(record, backend), result_of(record, recomputing)
        seconds, fast_seconds = (result["step_seconds"]["median"] for result in (reference, fast))
        rows.append(
            [
                f"{combiner_of(record)}, {record['batch']}",
                processor,
                f"{seconds:.3g} s",
                f"{fast_seconds:.3g} s",
                f"**{times(seconds / fast_seconds)}**",
                *(f"{result['peak_memory_gib']:.2f} GiB" for result in (reference, fast, small)),
            ]
        )
    head = ["combiner, batch", "processor", "reference", "pgat_fast", "times faster", "peak memory of the reference"]
    return table([*head, "of pgat_fast", "with `run.recompute=on`"], rows)


def saved_for_backward() -> str:
    """Return the saved bytes and the parameters of both combiners."""
    rows = []
    for combiner in ("batched", "hierarchical"):
        record = load(f"saved_for_backward_{combiner}")
        first = record["results"][0]
        for result in record["results"]:
            saved = result["saved_for_backward_bytes"]
            rows.append(
                [
                    combiner,
                    f"{result['parameters']:,}",
                    f"`{result['backend']}`",
                    f"{saved / 1e9:.2f} GB",
                    times(first["saved_for_backward_bytes"] / saved),
                ]
            )
    return table(["combiner", "parameters", "backend", "saved for backward", "times less"], rows)


def accuracy() -> str:
    """Return the errors of each precision."""
    (errors,) = (record["errors"] for record in load("accuracy")["errors"].values())
    rows = [[f"`{name}`", f"{error['forecast']:.1e}", f"{error['gradients']:.1e}"] for name, error in errors.items()]
    return table(["backend, precision", "forecast", "gradients"], rows)


def newest_comparison() -> Record:
    """Return the newest comparison at the quickstart's sizes. Raises DataError if there is none."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob("*/*/comparison*.json")]
    comparisons = [record for record in records if record["settings"]["config"] == QUICKSTART]
    if not comparisons:
        raise DataError(f"bench/results has no comparison of {QUICKSTART}: run `pgat-fast bench compare --save`")
    newest: Record = max(comparisons, key=lambda record: str(record["machine"]["date"]))
    return newest


def comparison_machine() -> str:
    """Return the machine of the newest comparison."""
    machine = newest_comparison()["machine"]
    return f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores"


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
    head = [
        "backend",
        "a step",
        "times faster (and what to expect of another run)",
        "peak memory",
        "in the steps",
    ]
    return table([*head, "saved for backward"], rows)


def grown() -> list[Record]:
    """Return the newest scaling results of each quantity and backend, with exponents fitted anew."""
    newest: dict[tuple[str, str], tuple[str, Record]] = {}
    for path in sorted(RESULTS.glob("*/*/scaling*.json")):
        record = json.loads(path.read_text())
        date = str(record["machine"]["date"])
        for result in record["results"]:
            key = result["what"], result["backend"]
            if key not in newest or newest[key][0] < date:
                newest[key] = date, summarize(*key, result["sizes"], result["records"])
    return [result for _, result in newest.values()]


def scaling() -> str:
    """Return the exponents, and the figures of the largest size."""
    rows = []
    for result in grown():
        measured = [pair for pair in zip(result["sizes"], result["records"], strict=True) if "error" not in pair[1]]
        failed = [
            str(size) for size, record in zip(result["sizes"], result["records"], strict=True) if "error" in record
        ]
        size, largest = measured[-1]
        system = f", {100 * largest['system_share']:.0f} % of it the system's" if "system_share" in largest else ""
        powers = [result["seconds_exponent"], result["memory_exponent"]]
        rows.append(
            [
                f"{result['what']}, {result['sizes'][0]} to {result['sizes'][-1]}",
                f"`{result['backend']}`",
                *("not known" if power is None else f"{power:.1f}" for power in powers),
                f"{largest['seconds']['median']:.3g} s{system}, {largest['memory_gib']:.2f} GiB at {size}"
                + (f" (at {', '.join(failed)} it failed)" if failed else ""),
            ]
        )
    return table(["what grows", "backend", "exponent of time", "of memory", "at the largest size"], rows)


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


def ranks() -> str:
    """Return the efficiency on several GPUs, on paper."""
    papers = load("ranks")["on_paper"]
    head = ["GPUs"]
    for paper in papers:
        name = "hierarchical" if "celestial_enhanced" in paper["config"] else "batched"
        size = f"{paper['gradient_bytes'] / 1e6:.0f} MB of gradients"
        windows = load("ranks")["assumptions"]["batch"]
        head += [f"{name} ({size}), {windows} windows a GPU", f"{name}, {windows} windows in all, divided"]
    rows = []
    for paper_rows in zip(*(paper["rows"] for paper in papers), strict=True):
        cells = [str(paper_rows[0]["gpus"])]
        for row in paper_rows:
            cells += ["-" if row[kind] is None else f"{100 * row[kind]:.0f} %" for kind in KINDS]
        rows.append(cells)
    return table(head, rows)


def ranks_check() -> str:
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
    record = json.loads(path.read_text())
    rows = [
        [name, f"{item['step_seconds']:.3g}", f"{item['epoch_seconds']:.3g}", f"{item['peak_memory_gib']:.2f} GiB"]
        for section, name, item in record["records"]
        if section == "steps" and item and item["ok"]
    ]
    machine, head = record["machine"], ["configuration, backend", "seconds a step", "seconds an epoch", "peak memory"]
    return f"On {machine['gpu']} (`{path.with_suffix('.md').relative_to(ROOT)}`):\n\n{table(head, rows)}"


# --- figures in sentences ---------------------------------------------------------------------------------------------


def peak_of(machine: str) -> str:
    """Return the peak of float32 products in GFLOP/s, rounded to ten."""
    peaks = [load(f"step_{combiner}_batch1", machine)["matrix_peak"] for combiner in ("batched", "hierarchical")]
    return f"{round(sum(peak['highest']['flop_per_second'] for peak in peaks) / len(peaks) / 1e9, -1):.0f}"


def compile_times(machine: str, key: str) -> list[float]:
    """Return seconds of compiling on a machine.

    A file without a second process has no time with the compiler's cache.
    """
    records = [json.loads(path.read_text()) for path in RESULTS.glob(f"{machine}/*/step_*.json")]
    all_seconds = [result["compile"][key] for record in records for result in record["results"] if "compile" in result]
    return [seconds for seconds in all_seconds if seconds is not None]


def compile_minutes(machine: str) -> str:
    """Return the minutes of compiling the whole model."""
    return f"{span([value / 60 for value in compile_times(machine, 'seconds')], '{:.0f}')} minutes"


def compile_seconds(machine: str, key: str) -> str:
    """Return the seconds of compiling the operators."""
    return f"{span(compile_times(machine, key), '{:.0f}')} seconds"


def hierarchical_fraction() -> str:
    """Return the fraction of the peak of the hierarchical combiner, on the slower processor."""
    fast = result_of(load("step_hierarchical_batch1", ZEN4), "torch:highest")
    return f"{100 * fast['fraction_of_matrix_peak']:.0f} %"


def hierarchical_limit() -> str:
    """Return the speed-up over the reference if only the executed products took time, at the peak."""
    record = load("step_hierarchical_batch1", ZEN4)
    reference, fast = (result_of(record, name) for name in ("reference:highest", "torch:highest"))
    peak = record["matrix_peak"]["highest"]["flop_per_second"]
    return times(reference["step_seconds"]["median"] / (fast["flops"] / peak))


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


def model_seconds(combiner: str) -> str:
    """Return the modelled seconds of an epoch: kernels and products alone, and with all else of torch unfused."""
    totals = load(f"cost_model_{combiner}")["gpus"]["H100"]["totals"]
    least, most = (totals[key] * EPOCH_STEPS for key in ("kernels_and_products", "eager"))
    return f"{least:.0f} to {most:.0f} s"


def monitoring() -> str:
    """Return the microseconds that monitoring adds to a step."""
    microseconds = [entry["extra_info"]["microseconds_per_step_median"] for entry in load("monitoring")["benchmarks"]]
    return span(microseconds, "{:.0f}")


def measured_kernels() -> str:
    """Return the GPUs for which it is known from which sizes kernels are faster."""
    gpus = json.loads(FILE.read_text())
    return f"there for {', '.join(gpus)}" if gpus else "empty so far"


def rmse_changes() -> list[str]:
    """Return the change of the RMSE with bf16 in percent, for every seed."""
    return [
        f"{100 * (training['rmse_ratio'] - 1):+.2f}"
        for training in load("accuracy")["trained"]
        if training["precision"] == "bf16"
    ]


def batches_per_second(name: str) -> str:
    """Return the batches per second of a benchmark of the data pipeline."""
    rates = {
        entry["name"]: entry["extra_info"]["batches_per_second_median"]
        for entry in load("data_pipeline")["benchmarks"]
        if "batches_per_second_median" in entry["extra_info"]
    }
    return f"{rates[name]:,.0f}"


def reference_again() -> str:
    """Return the seconds of a reference step in two results of the slower processor."""
    records = [load(name, ZEN4) for name in ("compiled_reference_batched_batch1", "step_batched_batch1")]
    seconds = [result_of(record, "reference:highest")["step_seconds"]["median"] for record in records]
    return " and ".join(f"{value:.1f}" for value in sorted(seconds))


FIGURES: Final[dict[str, Callable[[], str]]] = {
    "accuracy": accuracy,
    "batch_days": lambda: str(DAYS),
    "bodies_timesteps": lambda: str(TIMESTEPS),
    "combiner_lines": combiner_lines,
    "comparison": comparison,
    "comparison_machine": comparison_machine,
    "compile_fast": lambda: compile_minutes(ZEN5),
    "compile_slow": lambda: compile_minutes(ZEN4),
    "compile_slowest": lambda: compile_seconds(ZEN3, "seconds"),
    "compile_slowest_again": lambda: compile_seconds(ZEN3, "seconds_with_cache"),
    **{
        f"compiled_reference_{what}": lambda what=what: compiled_reference(what)
        for what in ("breaks", "compile", "times", "seconds", "memory")
    },
    "fast_steps": lambda: fast_steps(ZEN5),
    "fast_steps_zen3": lambda: fast_steps(ZEN3),
    "fast_steps_zen4": lambda: fast_steps(ZEN4),
    "gpu": gpu,
    "gpu_minutes": lambda: f"{MOST_SECONDS / 60:g}",
    "hierarchical_fraction": hierarchical_fraction,
    "hierarchical_limit": hierarchical_limit,
    "loader": lambda: batches_per_second("test_loader_without_workers"),
    "measured_kernels": measured_kernels,
    "model_batched": lambda: model_seconds("batched"),
    "model_hierarchical": lambda: model_seconds("hierarchical"),
    "monitoring": monitoring,
    "model_steps": lambda: str(EPOCH_STEPS),
    "peak_fast": lambda: peak_of(ZEN5),
    "peak_slow": lambda: peak_of(ZEN4),
    "peak_slowest": lambda: peak_of(ZEN3),
    "pipeline": lambda: batches_per_second("test_windows_batch[zeros]"),
    "ranks": ranks,
    "ranks_batch": lambda: str(load("ranks")["assumptions"]["batch"]),
    "ranks_check": ranks_check,
    "ranks_steps": ranks_steps,
    "ranks_step_batch": lambda: str(load("ranks")["check"]["batch"]),
    "ranks_cores": lambda: str(load("ranks")["check"]["cores"]),
    "reference_again": reference_again,
    "rmse_changes": lambda: ", ".join(rmse_changes()),
    "rmse_seeds": lambda: str(len(rmse_changes())),
    "roofline": roofline,
    "roofline_bandwidth": lambda: f"{load('roofline')['bandwidth']['bytes_per_second'] / 1e9:.0f}",
    "roofline_peak": lambda: f"{load('roofline')['matrix_peak']['fp32']['flop_per_second'] / 1e9:.0f}",
    "saved_batch": lambda: str(load("saved_for_backward_batched")["batch"]),
    "saved_for_backward": saved_for_backward,
    "scaling": scaling,
}
"""Name -> function that returns what `{NAME}` stands for in `bench/performance_template.md`."""
