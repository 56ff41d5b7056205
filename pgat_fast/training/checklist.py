"""Checklist of success: what a run must show before its results are trusted."""

from typing import Any

MEMORY_BAR_GIB = 6.0
"""Limit if the configuration sets none: what production may use."""

RMSE_BAR = 1.0
"""Scaled targets have standard deviation 1 over the training rows, so forecasting their mean has about this RMSE."""


def checklist(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return `{check, passed, figure}` for each check that a finished run should pass.

    `results` is the content of `results.json` without the checklist.
    """
    epochs, configured_epochs = results["epochs"], results["config"]["training"]["epochs"]
    complete_epochs = sum(epoch["complete"] for epoch in epochs)
    losses = [results["initial_validation_loss"], *results["validation_losses"]]
    scaled, targets = results["test"]["scaled"], results["targets"]
    rmse = scaled["model"]["overall"]["rmse"]
    missing = [name for name in targets if scaled["model"].get(name, {}).get("rmse") is None]
    scenarios = results["adversarial"]["scenarios"]
    failed = [name for name, scenario in scenarios.items() if scenario["status"] != "ok"]
    memory, checkpoints = results["memory"], results["checkpoints"]
    within_limit, figures = _memory(memory)
    return [
        _line(
            "every epoch finished",
            complete_epochs == configured_epochs,
            f"{complete_epochs} of {configured_epochs}: {results['training_ended']}",
        ),
        _line("validation loss fell", min(losses[1:]) < losses[0], f"{losses[0]:.5f} to {min(losses[1:]):.5f}"),
        _line(f"scaled test RMSE under {RMSE_BAR}", rmse is not None and rmse < RMSE_BAR, _number(rmse)),
        _line(
            "every target predicted",
            not missing,
            f"{len(targets) - len(missing)} of {len(targets)}" + (f", not {', '.join(missing)}" if missing else ""),
        ),
        *(
            _line(f"skill against {name} above 0", skill is not None and skill > 0, _number(skill, "+.4f"))
            for name, skill in scaled["skill"].items()
        ),
        _line(
            "all adversarial scenarios ran and stayed finite",
            not failed,
            f"{len(scenarios) - len(failed)} of {len(scenarios)}" + (f", not {', '.join(failed)}" if failed else ""),
        ),
        _line("memory under its limit", within_limit, figures),
        _line(
            "checkpoints verified",
            checkpoints["verified"],
            f"{len(checkpoints['kept'])} kept" + "".join(f"; {fault}" for fault in checkpoints["faults"]),
        ),
    ]


def checklist_text(lines: list[dict[str, Any]]) -> str:
    """Return the checklist as text, one line per check."""
    return "\n".join(f"  {'yes' if line['passed'] else 'NO ':<4} {line['check']}: {line['figure']}" for line in lines)


def _memory(memory: dict[str, float | None]) -> tuple[bool, str]:
    """Return whether the peaks are below their limits, and the figures.

    `MEMORY_BAR_GIB` replaces a limit that is not set: that of the device if there is one, otherwise of the process.
    """
    device = memory.get("peak_device_gib") is not None
    passed, figures = True, []
    for kind, limit in (("process", memory.get("limit_gib")), ("device", memory.get("device_limit_gib"))):
        if limit is None and kind != ("device" if device else "process"):
            continue
        peak = memory.get(f"peak_{kind}_gib")
        bar = limit or MEMORY_BAR_GIB
        passed = passed and peak is not None and peak < bar
        figures.append(f"{kind} peak {'unknown' if peak is None else f'{peak:.2f} GiB'}, limit {bar:g} GiB")
    return passed, "; ".join(figures)


def _line(check: str, passed: bool, figure: str) -> dict[str, Any]:
    return {"check": check, "passed": bool(passed), "figure": figure}


def _number(value: float | None, form: str = ".4f") -> str:
    return "not finite" if value is None else format(value, form)
