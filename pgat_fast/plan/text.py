"""A plan formatted as a text table."""

from collections.abc import Sequence

from pgat_fast.plan.figures import Plan


def in_bytes(count: float) -> str:
    """Format `count` bytes with a suitable unit and three digits: 1.33 GiB."""
    return _with_unit(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def in_flops(count: float) -> str:
    """Format `count` FLOPs with a suitable unit and three digits: 355 GFLOP."""
    return _with_unit(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _with_unit(count: float, factor: int, units: Sequence[str]) -> str:
    """Format `count` with the first of `units`, each `factor` times the one before, that makes it less than 1,000."""
    index = 0
    while abs(count) >= 1000 and index < len(units) - 1:
        count, index = count / factor, index + 1
    return f"{count:.3g} {units[index]}" if abs(count) < 1000 else f"{count:,.0f} {units[index]}"


def as_text(plan: Plan) -> str:
    """Format a plan with one line for each figure, in groups, and warnings at the end."""
    return "\n\n".join(
        f"{title}\n" + "\n".join(f"  {name:<34} {value}".rstrip() for name, value in rows)
        for title, rows in _groups(plan).items()
    )


def _groups(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    parameters, work, flops, memory, disk = plan.parameters, plan.work, plan.computation, plan.memory, plan.disk
    device = plan.device if plan.device_present else f"{plan.device} (not on this machine)"
    batches = f"{plan.batch_size} windows, {plan.gradient_accumulation_steps} batches an optimizer step"
    groups = {
        "run": [
            ("backend", plan.backend),
            ("device", device),
            ("products in", plan.precision),
            ("batch", batches),
        ],
        "parameters": [
            ("ours", f"{parameters.count:,}"),
            ("in the original layout", f"{parameters.original_count:,}"),
            ("bytes of parameters", in_bytes(parameters.trainable_bytes)),
            ("bytes of gradients", in_bytes(parameters.gradient_bytes)),
            ("bytes of Adam's state", in_bytes(parameters.optimizer_bytes)),
        ],
    }
    if work is None:
        groups["work"] = [(plan.data, "does not exist: unknown")]
    else:
        windows = (work.train_windows, work.validation_windows, work.test_windows)
        groups["work"] = [
            ("windows: train, validation, test", ", ".join(f"{count:,}" for count in windows)),
            ("batches an epoch", f"{work.batches_per_epoch:,}"),
            ("optimizer steps an epoch", f"{work.steps_per_epoch:,}"),
            ("optimizer steps of the run", f"{work.steps:,}"),
        ]
    groups["computation (products alone)"] = [
        ("forward pass of a batch", in_flops(flops.forward)),
        ("training step of a batch", f"{in_flops(flops.micro_batch)} ({flops.micro_batch / flops.forward:.2f} x)"),
        ("optimizer step", in_flops(flops.optimizer_step)),
        ("the run", "unknown" if flops.run is None else in_flops(flops.run)),
    ]
    groups["memory (predicted)"] = [
        ("kept for the backward pass", in_bytes(memory.kept)),
        ("tensors at their peak", in_bytes(memory.tensors)),
        *([] if memory.process is None else [("process at its peak", in_bytes(memory.process))]),
        *((limit.name, f"{in_bytes(limit.limit)}, of which {100 * limit.share:.3g} %") for limit in memory.limits),
        ("largest batch that fits", _fit(plan)),
    ]
    groups["disk"] = [
        ("a checkpoint", in_bytes(disk.checkpoint)),
        ("most checkpoints at a time", in_bytes(disk.kept)),
        ("free space", in_bytes(disk.free)),
    ]
    if plan.warnings:
        groups["warnings"] = [(warning, "") for warning in plan.warnings]
    groups[f"planned in {plan.seconds:.1f} s, without running a step"] = []
    return groups


def _fit(plan: Plan) -> str:
    fit = plan.memory.largest_batch
    if fit is None:
        return "unknown"
    if fit.batch == 0:
        return f"none: one window needs {in_bytes(fit.needed)}"
    all_windows = ", all windows" if fit.capped else ""
    return f"{fit.batch:,}{all_windows} ({in_bytes(fit.needed)})"
