"""Tests of `bench.gpu.cost_model`: the time of a launch, and the committed figures."""

import json
from pathlib import Path

import pytest

from bench.gpu.cost_model import GPUS, LAUNCH_SECONDS, Gpu, Work, as_markdown, model_of_config

RESULTS = Path("bench/results/offline/2026-11-30")


def test_launch_takes_longest_of_its_limits() -> None:
    gpu = GPUS[1]
    assert Work("x", "kernel", int(gpu.flops_16), 8, float32=False).seconds(gpu) == pytest.approx(1)
    assert Work("x", "kernel", int(gpu.flops_32), 8, float32=True).seconds(gpu) == pytest.approx(1)
    assert Work("x", "kernel", 1, int(2 * gpu.bandwidth), float32=False).seconds(gpu) == pytest.approx(2)
    assert Work("x", "kernel", 0, 0, float32=False).seconds(gpu) == LAUNCH_SECONDS


A100, OTHERS = GPUS[:1], GPUS[1:]
"""All GPUs but the first have the same tiles, so the others are modelled together."""


@pytest.mark.slow  # models of production sizes
@pytest.mark.parametrize(
    ("name", "config", "gpus"),
    [
        ("batched", "configs/production_batched.yaml", A100),
        ("hierarchical", "configs/celestial_enhanced_pgat_production.yaml", OTHERS),
    ],
)
def test_committed_figures_agree_with_code(name: str, config: str, gpus: tuple[Gpu, ...]) -> None:
    """Check every GPU and every configuration, but not every pair of them.

    `python -m bench.gpu.cost_model --config CONFIG --out bench/results/offline/DATE/cost_model_NAME` goes through all:
    git then shows what differs.
    """
    result = json.loads(json.dumps(model_of_config(config, 16, "bf16", gpus)))
    committed = json.loads((RESULTS / f"cost_model_{name}.json").read_text())
    assert list(committed["gpus"]) == [gpu.name for gpu in GPUS]
    chosen = {gpu.name: committed["gpus"][gpu.name] for gpu in gpus}
    assert result == committed | {"gpus": chosen, "command": result["command"]}
    assert (RESULTS / f"cost_model_{name}.md").read_text() == as_markdown(committed)
    assert "not a measurement" in as_markdown(committed)
    kernels = {row for row, figures in committed["gpus"]["H100"]["rows"].items() if figures["group"] == "kernel"}
    assert {
        "_feed_forward_fwd_kernel",
        "_projection_bwd_kernel",
        "_edge_head_fwd_kernel",
        "_gru_scan_fwd_kernel",
    } < kernels
