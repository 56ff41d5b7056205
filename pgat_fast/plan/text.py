"""A plan formatted as a text table."""

from pgat_fast.plan.figures import Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def in_bytes(count: float) -> str:
    """Format `count` bytes with a suitable unit and three digits: 1.33 GiB."""
    for unit in _UNITS:
        if abs(count) < 1000 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def in_flops(count: float) -> str:
    """Format `count` FLOPs with a suitable unit and three digits: 355 GFLOP."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(count) < 1000 or unit == "E":
            break
        count /= 1000
    return f"{count:.3g} {unit}FLOP"


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
        groups["work"] = [(plan.data, "does not exist: not known")]
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
        ("the run", "not known" if flops.run is None else in_flops(flops.run)),
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
        ("all that are kept at once", in_bytes(disk.kept)),
        ("free where they are written", in_bytes(disk.free)),
    ]
    if plan.warnings:
        groups["warnings"] = [(warning, "") for warning in plan.warnings]
    groups[f"planned in {plan.seconds:.1f} s, nothing was computed"] = []
    return groups


def _fit(plan: Plan) -> str:
    fit = plan.memory.largest_batch
    if fit is None:
        return "not known"
    if fit.batch == 0:
        return f"none: one window needs {in_bytes(fit.needed)}"
    all_windows = ", all windows" if fit.capped else ""
    return f"{fit.batch:,}{all_windows} ({in_bytes(fit.needed)})"
