"""Counts of memory and FLOPs on fake tensors, compared with real steps."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pgat_fast import build_model
from pgat_fast.config import Config
from pgat_fast.data.windows import example
from pgat_fast.model.reference.pgat import PGAT
from pgat_fast.plan import fake_ops
from pgat_fast.plan.trace import (
    MISSING_FORMULAS,
    Flops,
    LiveBytes,
    Memory,
    flops_of_step,
    memory_of_step,
    trace_flops,
    trace_memory,
)
from pgat_kernels.instrumentation import chunk_device_type
from tests.combinations import pairwise, pairwise_each_value_first
from tests.pgat_fast.model import variants
from tests.pgat_fast.model.variants import FEW

REAL = (*FEW, "stochastic")
BACKENDS = ("reference", "torch")

compares_counts = pytest.mark.slow
"""Mark of tests that compare counts with each other; other tests compare them with a real step."""


def config_of(variant: str, **changes: Any) -> Config:
    """Return the configuration of a variant, with recomputation of the combiner by default."""
    return variants.config_of(variant, **{"recompute": "on", **changes})


def real_model(config: Config, substitutes: bool, backend: str = "reference") -> nn.Module:
    model = build_model(config, backend).train()
    if substitutes:
        fake_ops.replace_recurrences(model)
    return model


def real_memory(
    config: Config,
    batch: int,
    substitutes: bool = True,
    precision: torch.dtype | None = None,
    backend: str = "reference",
) -> Memory:
    model = real_model(config, substitutes, backend)
    return memory_of_step(model, example(config.model, batch), config, precision)


@cache
def counted_memory(
    variant: str,
    batch: int,
    precision: torch.dtype | None = None,
    device: str = "cpu",
    backend: str = "reference",
    **changes: Any,
) -> Memory:
    """Return the counts for a variant, cached for all tests."""
    return trace_memory(config_of(variant, **changes), batch, precision, device, backend)


@cache
def counted_flops(variant: str, batch: int, backend: str = "reference", **changes: Any) -> Flops:
    return trace_flops(config_of(variant, **changes), batch, backend)


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "backend"), pairwise_each_value_first(REAL, BACKENDS, slow=lambda row: "attention" not in row[0])
)
def test_counted_bytes_equal_a_real_step(variant: str, backend: str) -> None:
    assert counted_memory(variant, 3, backend=backend) == real_memory(config_of(variant), 3, backend=backend)


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize(("precision", "backend"), pairwise([torch.bfloat16, torch.float16], BACKENDS))
def test_counted_bytes_are_near_a_real_step_in_16_bits(precision: torch.dtype, backend: str) -> None:
    config = config_of("batched")
    counted = counted_memory("batched", 3, precision, backend=backend)
    real = real_memory(config, 3, precision=precision, backend=backend)
    # Layer norm keeps mean and deviation in float32 on a CPU, but in 16 bits on fake tensors: 1 in D numbers.
    assert counted.kept == pytest.approx(real.kept, rel=1e-3)
    assert counted.peak == pytest.approx(real.peak, rel=1e-3)


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_exist_from_the_start_with_accumulation(backend: str) -> None:
    once, twice = config_of("batched"), config_of("batched", gradient_accumulation_steps=2)
    parameters = 4 * sum(parameter.numel() for parameter in PGAT(once.model).parameters())
    accumulated = counted_memory("batched", 2, backend=backend, gradient_accumulation_steps=2)
    assert accumulated.kept == counted_memory("batched", 2, backend=backend).kept + parameters
    assert accumulated == real_memory(twice, 2, backend=backend)


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("batch", [1, 2])
def test_counted_bytes_equal_a_real_step_with_real_recurrences(batch: int) -> None:
    config = config_of("batched", seq_len=20)
    assert counted_memory("batched", batch, seq_len=20) == real_memory(config, batch, substitutes=False)


@compares_counts
def test_memory_is_linear_in_the_batch() -> None:
    two, four, six = (counted_memory("hierarchical", batch) for batch in (2, 4, 6))
    assert six.kept - four.kept == four.kept - two.kept
    # Gradients and the generator state of each recomputed block are constant. The time of the peak may change.
    assert six.peak - four.peak == pytest.approx(four.peak - two.peak, rel=0.02)


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("variant", ["batched", "hierarchical attention, bias"])
def test_bytes_kept_by_operators_equal_a_real_step(variant: str) -> None:
    config = config_of(variant, recompute="off")
    counted = counted_memory(variant, 3, backend="torch", recompute="off")
    real = real_memory(config, 3, backend="torch")
    assert counted.kept == real.kept
    assert 0 < counted.by_operators < counted.kept
    # The memory of two chunks at a time is counted in addition to what they keep.
    recomputing = counted_memory(variant, 3, backend="torch")
    assert real.peak <= counted.peak <= real.peak + recomputing.peak
    assert counted.again == recomputing


@pytest.mark.slow  # steps are traced, operator by operator
def test_kept_chunks_are_not_recomputed() -> None:
    batch = 3
    keeping, recomputing = (
        counted_flops("batched", batch, "torch", recompute="off"),
        counted_flops("batched", batch, "torch"),
    )
    config = config_of("batched", recompute="off")
    real = flops_of_step(real_model(config, True, "torch"), example(config.model, batch), config)
    assert keeping == real
    assert keeping.forward == recomputing.forward
    assert keeping.step < recomputing.step


def test_views_count_once_until_they_are_freed() -> None:
    live = LiveBytes()
    with live:
        x = torch.zeros(10, 10)
        row, turned = x[3], x.t()
        assert live.all.live == 400
        del x, row
        assert live.all.live == 400
        y = turned + 1
        assert (live.all.live, live.all.peak) == (800, 800)
        del turned
        assert (live.all.live, live.all.peak) == (400, 800)
        y.add_(1)
        assert (live.all.live, live.all.peak) == (400, 800)


def test_peaks_of_large_and_small_storages_are_independent() -> None:
    live = LiveBytes()
    with live:
        small = torch.empty(2**20, dtype=torch.uint8)
        del small
        large = torch.empty(2**25, dtype=torch.uint8)
    assert (live.all.peak_small, live.all.peak_large, live.all.peak) == (2**20, 2**25, large.nbytes)


# --- operators of a GPU -----------------------------------------------------------------------------------------------


def kept_by(operator: Callable[[Tensor], Tensor], device: str) -> int:
    """Return the bytes that exist after a call of `operator` on 1,000 numbers, without its input."""
    x = torch.randn(10, 100, requires_grad=True)
    live = LiveBytes([x])
    if device == "cuda":
        with fake_ops.cuda_operators(), live:
            y = operator(x)
    else:
        with live:
            y = operator(x)
    assert y.shape == x.shape
    return live.all.live


def test_dropout_mask_has_one_byte_an_element_on_a_gpu_and_four_on_a_cpu() -> None:
    dropout = nn.Dropout(0.1)
    assert kept_by(dropout, "cpu") == 8000
    assert kept_by(dropout, "cuda") == 5000
    assert kept_by(dropout.eval(), "cuda") == 0


def test_softmax_and_layer_norm_return_float32_under_autocast_on_a_gpu() -> None:
    x, norm = torch.randn(4, 8), nn.LayerNorm(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ torch.eye(8)
        assert F.softmax(y, dim=-1).dtype == torch.bfloat16
        with fake_ops.cuda_operators():
            assert F.softmax(y, dim=-1).dtype == norm(y).dtype == torch.float32
    with fake_ops.cuda_operators():
        assert F.softmax(y, dim=-1).dtype == torch.bfloat16


def test_cpu_operators_are_restored_after_an_error() -> None:
    def now() -> tuple[object, ...]:
        return F.dropout, F.softmax, F.layer_norm, chunk_device_type(torch.device("cpu"))

    before = now()
    with pytest.raises(KeyError), fake_ops.cuda_operators():
        raise KeyError
    assert before == now()


@compares_counts
def test_gpu_keeps_less_than_cpu_and_16_bits_less_than_32() -> None:
    cpu, gpu = (counted_memory("batched", 4, device=device).kept for device in ("cpu", "cuda"))
    halves = counted_memory("batched", 4, torch.bfloat16, "cuda").kept
    assert halves < gpu < cpu


@compares_counts
def test_fast_model_uses_larger_chunks_on_a_gpu() -> None:
    cpu, gpu = (counted_memory("batched", 4, device=device, backend="torch", seq_len=60) for device in ("cpu", "cuda"))
    assert gpu.kept <= cpu.kept
    assert gpu.peak > 2 * cpu.peak


# --- recurrences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "steps"), [(1, 20), (2, 20), (4, 30)])
def test_substitute_gru_keeps_the_bytes_of_the_real_one(batch: int, steps: int) -> None:
    real = nn.GRU(32, 32, batch_first=True)
    kept = []
    for module in (real, fake_ops.GRU(real)):
        x = torch.randn(batch, steps, 32, requires_grad=True)
        live = LiveBytes([x, *real.parameters()])
        with live:
            y = module(x)[0]
        assert y.shape == (batch, steps, 32)
        kept.append(live.all.live)
    # The real GRU also has a first state, [B, C], and one or two scalars.
    assert 0 <= kept[0] - kept[1] <= 2 * batch * 32 * 4


def test_unsupported_gru_is_rejected() -> None:
    with pytest.raises(ValueError, match="not a GRU of one layer"):
        fake_ops.replace_recurrences(nn.Sequential(nn.GRU(32, 16, batch_first=True)))


# --- FLOPs ------------------------------------------------------------------------------------------------------------


def products_by_hand(config: Config, batch: int) -> int:
    """Return the multiplications in the forward pass of a model without bodies, with partitioned graph processing."""
    m = config.model
    S, N, F_, D, C, H = m.seq_len, m.nodes, m.enc_in, m.embed_dim, m.c_out, m.n_heads
    T, P, tokens, share, c = m.label_len + m.pred_len, m.pred_len, S * N, D // N, N - C
    count = S * D * F_ * 3  # embedding: a convolution over 3 days
    count += S * (D * D + D * N * N)  # learner
    count += S * (D * (D // 2) + (D // 2) * 3)  # mixer
    count += S * D * N * D  # encoder: node projection
    count += tokens * D * D * (1 + 3 + 5 + 7)  # convolutions along time
    count += 3 * (S * N * N * D + tokens * D * D)  # hops
    count += tokens * D * (D // H)  # interaction
    count += 4 * tokens * D * D + 2 * tokens * tokens * D  # attention
    count += 3 * tokens * 2 * D * D  # gates
    count += tokens * D * D  # readout
    count += S * (c * c * share + c * share * share)  # partitioned: covariates
    count += S * (C * c * share + C * C * share + C * 3 * share * share)  # and targets
    count += T * D * m.dec_in * 3  # decoder embedding
    count += m.d_layers * (4 * T * D * D + 2 * T * T * D)  # self-attention
    count += m.d_layers * (2 * (T + S) * D * D + 2 * T * S * D)  # cross-attention
    count += m.d_layers * 2 * T * D * 4 * D  # feed-forward
    count += P * D * C  # head
    return batch * count


def test_flops_of_a_whole_model_equal_hand_count() -> None:
    config = config_of("no bodies", d_layers=2)
    assert counted_flops("no bodies", 3, d_layers=2).forward == 2 * products_by_hand(config, 3)


def test_step_without_recomputation_costs_three_forward_passes() -> None:
    flops = counted_flops("no bodies", 2)
    # Slightly less: the gradient of the inputs is not computed.
    assert 2.9 < flops.step / flops.forward < 3


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("variant", ["batched", "hierarchical"])
def test_step_with_recomputed_combiner_costs_four_forward_passes(variant: str) -> None:
    flops = counted_flops(variant, 2)
    assert 3.4 < flops.step / flops.forward < 4


@pytest.mark.slow  # steps are traced, operator by operator
def test_real_recurrences_compute_one_product_less_each() -> None:
    config, batch, width = config_of("batched"), 3, 32
    counted = counted_flops("batched", batch)
    real = flops_of_step(real_model(config, substitutes=False), example(config.model, batch), config)
    assert real.forward == counted.forward
    assert counted.step - real.step == 13 * 2 * batch * 3 * width * width


@pytest.mark.parametrize("variant", [REAL[0], *(pytest.param(name, marks=pytest.mark.slow) for name in REAL[1:])])
def test_flops_of_the_fast_model_equal_a_real_step(variant: str) -> None:
    config = config_of(variant)
    counted = counted_flops(variant, 3, "torch")
    assert counted == flops_of_step(real_model(config, False, "torch"), example(config.model, 3), config)
    assert counted.step > counted.forward > 0


def test_flops_of_fused_attention_are_counted_on_a_cpu() -> None:
    q = torch.randn(2, 4, 10, 8, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=dict(MISSING_FORMULAS)) as counter:
        y = F.scaled_dot_product_attention(q, q, q)
        forward = counter.get_total_flops()
        y.sum().backward()
    product = 2 * 2 * 4 * 10 * 10 * 8
    assert forward == 2 * product
    assert counter.get_total_flops() - forward == 5 * product  # the scores are recomputed


@compares_counts
def test_flops_are_proportional_to_the_batch() -> None:
    two, six = (counted_flops("batched", batch) for batch in (2, 6))
    assert (six.forward, six.step) == (3 * two.forward, 3 * two.step)


@compares_counts
def test_flops_of_the_fast_model_are_linear_in_the_batch() -> None:
    config = config_of("batched")
    config = config.model_copy(update={"run": config.run.model_copy(update={"combiner_chunk": 1})})
    two, four, six = (trace_flops(config, batch, "torch") for batch in (2, 4, 6))
    # Besides products of windows, weights are multiplied with each other once a step; chunks contain whole graphs.
    assert six.forward - four.forward == pytest.approx(four.forward - two.forward, rel=1e-3)
    assert six.step - four.step == pytest.approx(four.step - two.step, rel=1e-3)
