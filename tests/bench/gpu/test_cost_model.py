"""Tests of `bench.gpu.cost_model`: planted costs change the modelled time by what they take; the committed figures."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from bench.gpu.cost_model import (
    GPUS,
    LAUNCH_SECONDS,
    SUSTAINED,
    Count,
    Gpu,
    Work,
    as_markdown,
    model_of_config,
    table,
    totals,
    work_of_a_step,
)
from pgat_fast import build_model, load_config
from pgat_fast.training import rng
from pgat_fast.training.optimizer_step import OptimizerStep

RESULTS = Path("bench/results/offline/2026-11-30")
H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
SMALL = {
    "seq_len": 8, "label_len": 4, "pred_len": 2, "d_model": 26, "n_heads": 2, "e_layers": 1, "d_layers": 1,
    "combiner": "batched", "fusion_layers": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work("x", "kernel", int(SUSTAINED * H100.flops_16), 8, float32=False), 1.0),
        (Work("x", "kernel", int(H100.flops_32), 8, float32=True), 1.0),
        (Work("x", "kernel", 1, int(2 * H100.bandwidth), float32=False), 2.0),
        (Work("x", "kernel", 1, 8, float32=False, instructions=int(3 * 132 * 4 * 1.83e9)), 3.0),
        (Work("x", "elementwise", 0, 0, float32=False), LAUNCH_SECONDS),
        (Work("x", "elementwise", 0, 0, float32=False, launches=5), 5 * LAUNCH_SECONDS),
    ],
)
def test_launch_takes_longest_of_its_limits(work: Work, seconds: float) -> None:
    assert work.seconds(H100) == pytest.approx(seconds)


# --- planted costs ----------------------------------------------------------------------------------------------------


def small_step() -> list[Work]:
    """Return the work of a step of a small model, without instructions."""
    return work_of_a_step(load_config(SMALL), "bf16", 2, "sm_90", issue=False)


@pytest.fixture(scope="module")
def before() -> list[Work]:
    return small_step()


def planted(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> list[Work]:
    """Return the work of a step in which `change(loss)` computes the loss of a batch."""
    monkeypatch.setattr(OptimizerStep, "loss", change(OptimizerStep.loss))
    return small_step()


@pytest.mark.slow  # traces steps of a whole model
def test_extra_elementwise_pass_costs_its_bytes(before: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**20

    def change(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def with_extra_pass(self: OptimizerStep, batch: Any, model: Any = None) -> Tensor:
            torch.ones(size).neg()
            return loss(self, batch, model)

        return with_extra_pass

    after = planted(monkeypatch, change)
    (extra,) = [entry for entry in after if entry.name == "neg" and entry.bytes == 2 * 4 * size]
    assert extra.seconds(H100) == pytest.approx(max(8 * size / H100.bandwidth, LAUNCH_SECONDS))
    assert sum(entry.launches for entry in after) == sum(entry.launches for entry in before) + 2  # `ones` fills, too


@pytest.mark.slow  # traces steps of a whole model
def test_second_forward_pass_launches_its_kernels(before: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    def change(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def twice(self: OptimizerStep, batch: Any, model: Any = None) -> Tensor:
            with torch.no_grad():
                loss(self, batch, model)
            return loss(self, batch, model)

        return twice

    after = planted(monkeypatch, change)
    kernels = [Counter(entry.name for entry in work if entry.group == "kernel") for work in (before, after)]
    added = kernels[1] - kernels[0]
    assert {name.split(",")[0] for name in added} >= {"edge_head_fwd", "feed_forward_fwd", "edge_attention_fwd"}
    assert not [name for name in added if "_bwd" in name]


@pytest.mark.slow  # traces steps of a whole model
def test_fill_of_empty_memory_costs_its_bytes(before: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training switches the fills off that torch makes for deterministic algorithms; each would be a launch."""
    assert not [entry for entry in before if entry.name == "fill of empty memory"]

    def with_fills(enabled: bool) -> None:
        torch.use_deterministic_algorithms(enabled, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True

    monkeypatch.setattr(rng, "use_deterministic_algorithms", with_fills)
    fills = [entry for entry in small_step() if entry.name == "fill of empty memory"]
    assert len(fills) > 20
    assert all(entry.bytes > 0 for entry in fills)
    assert totals(table(fills, H100))["seconds"] >= len(fills) * LAUNCH_SECONDS


@pytest.mark.slow  # traces a step of a whole model
def test_optimizer_and_clipping_are_part_of_a_step(before: list[Work]) -> None:
    entries = {entry.name: entry for entry in before}
    parameters = sum(parameter.numel() for parameter in build_model(load_config(SMALL)).parameters())
    adam = entries["_fused_adam_"]
    assert adam.bytes >= 4 * 4 * parameters  # weights, gradients and two moments
    assert {"_foreach_norm", "_foreach_mul_"} <= set(entries)


@pytest.mark.slow  # whole passes of a model
def test_products_are_those_that_the_profiler_sees() -> None:
    """Count a real pass of a small model in plain torch, and compare with one that torch's profiler records."""
    model = build_model(load_config(SMALL))
    inputs = torch.randn(2, 8, 118), torch.rand(2, 8, 4), torch.randn(2, 6, 118), torch.rand(2, 6, 4)

    def step() -> None:
        model(*inputs)[0].sum().backward()

    step()  # the first one tests once what the processor can do, with products of its own
    with Count([], flop_registry) as count:
        step()
    with torch.profiler.profile() as profile:
        step()
    recorded = Counter(event.name.removeprefix("aten::") for event in profile.events())
    counted = Counter(entry.name for entry in count.work if isinstance(entry, Work))
    products = ("mm", "bmm", "baddbmm", "convolution", "convolution_backward")
    assert {name: counted[name] for name in products} == {name: recorded[name] for name in products}
    assert counted["addmm"] > 0
    assert 0 <= recorded["addmm"] - counted["addmm"] <= 1  # one is inside another operation of torch


# --- committed figures ------------------------------------------------------------------------------------------------

A100 = GPUS[:1]


@pytest.mark.slow  # a model of production sizes: kernels through the offline compiler
@pytest.mark.parametrize(
    ("name", "config", "gpus"),
    [("batched", "configs/production_batched.yaml", A100)],
)
def test_committed_figures_agree_with_code(name: str, config: str, gpus: tuple[Gpu, ...]) -> None:
    """Check one GPU and one configuration.

    `python -m bench.gpu.cost_model --config CONFIG --out bench/results/offline/DATE/cost_model_NAME` goes through all:
    git then shows what differs.
    """
    # Sums of thousands of times are compared to 9 digits: the last ones depend on the order of the terms.
    read = partial(json.loads, parse_float=lambda number: float(f"{float(number):.9g}"))
    result = read(json.dumps(model_of_config(config, 16, "bf16", gpus)))
    committed = read((RESULTS / f"cost_model_{name}.json").read_text())
    chosen = {gpu.name: committed["gpus"][gpu.name] for gpu in gpus}
    assert result == committed | {"gpus": chosen, "command": result["command"]}


@pytest.mark.parametrize("name", ["batched", "hierarchical"])
def test_committed_tables_are_those_of_the_figures(name: str) -> None:
    committed = json.loads((RESULTS / f"cost_model_{name}.json").read_text())
    assert list(committed["gpus"]) == [gpu.name for gpu in GPUS]
    assert (RESULTS / f"cost_model_{name}.md").read_text() == as_markdown(committed)
    assert "not a measurement" in as_markdown(committed)
