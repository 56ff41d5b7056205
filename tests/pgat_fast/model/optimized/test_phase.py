"""The fast phase-aware processor: 16 bits, dropout, unused columns; for equality see `test_parts`."""

from collections import defaultdict
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.data.bodies import BODIES
from pgat_fast.data.columns import COLUMNS, feature_columns
from pgat_fast.model.optimized.phase import FastPhaseAwareProcessor
from pgat_fast.model.reference.initialization import initialize
from pgat_fast.model.reference.phase import PhaseAwareProcessor
from pgat_kernels.ops.dropout import draw_seed, keep_mask, keep_scale
from tests.pgat_fast.model.by_hand import EXACT
from tests.pgat_fast.model.optimized.parts import inputs_of, phase
from tests.pgat_fast.model.results import assert_close, outputs_and_gradients

every_setting = pytest.mark.parametrize(
    ("feature_map", "phase_edges"), list(product(("named", "positional"), ("computed", "zero")))
)


@pytest.mark.parametrize("part", [PhaseAwareProcessor, FastPhaseAwareProcessor])
def test_edges_without_quantities_are_finite_in_16_bits(part: type[PhaseAwareProcessor]) -> None:
    """Check the denominator: a distance of 0 becomes 1e-8, which float16 cannot represent."""
    torch.manual_seed(0)
    model = part(1, "named", "zero").eval()
    with torch.autocast("cpu", dtype=torch.float16):
        features, adjacency = model(torch.randn(2, 3, 118))
    assert bool(features.isfinite().all())
    assert bool(adjacency.isfinite().all())


def pooled_errors(feature_map: str, phase_edges: str, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Return relative errors of reference and fast processor to float64, pooled over all bodies and three inputs.

    A single small gradient can be accurate by chance.
    """
    squares: dict[str, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        reference, fast = phase(8, feature_map, phase_edges).models()
        initialize(reference)
        fast.load_state_dict(reference.state_dict())
        x = inputs_of(3, 9, len(COLUMNS), seed=seed)
        exact = outputs_and_gradients(reference, x, seed=5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            rounded = [outputs_and_gradients(model.float(), x.float(), seed=5) for model in (reference, fast)]
        for name, truth in exact.items():
            kind = name.split(".", 2)[2] if name.startswith("bodies.") else name
            tensors = (truth, *(values[name] - truth for values in rounded))
            squares[kind] += torch.stack([tensor.detach().double().square().sum() for tensor in tensors])
    return {name: ((values[1] / values[0]).sqrt(), (values[2] / values[0]).sqrt()) for name, values in squares.items()}


@every_setting
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)])
def test_rounding_errors_are_near_those_of_the_reference(
    feature_map: str, phase_edges: str, dtype: torch.dtype, floor: float
) -> None:
    for name, (reference_error, fast_error) in pooled_errors(feature_map, phase_edges, dtype).items():
        assert fast_error <= 2 * reference_error + floor, name


def test_autocast_returns_16_bit_features_and_float32_adjacency() -> None:
    fast = FastPhaseAwareProcessor(8, "named", "computed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, adjacency = fast(inputs_of(2, 3, len(COLUMNS)).float())
    assert features.dtype == torch.bfloat16
    assert adjacency.dtype == torch.float32


class GivenDropout(nn.Module):
    """Dropout with a given mask."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept * keep_scale(0.1)


def test_dropout_masks_are_equal_in_both_passes() -> None:
    reference, fast = phase(8, "named", "computed").models()
    batch, steps, hidden = 2, 5, 64
    torch.manual_seed(7)
    masks = keep_mask(draw_seed(torch.device("cpu")), 0, (len(BODIES), batch * steps, hidden), 0.1)
    for body, mask in zip(reference.bodies.values(), masks, strict=True):
        body.add_module("dropout", GivenDropout(mask.view(batch, steps, hidden)))
    assert 0.85 < masks.double().mean() < 0.95
    x = inputs_of(batch, steps, len(COLUMNS))
    torch.manual_seed(7)
    actual = outputs_and_gradients(fast.train(), x)
    assert_close(actual, outputs_and_gradients(reference, x))
    again = outputs_and_gradients(fast, x)
    assert not torch.allclose(actual["output 0"], again["output 0"])


@every_setting
def test_nan_in_columns_without_a_body_has_no_effect(feature_map: str, phase_edges: str) -> None:
    reference, fast = phase(4, feature_map, phase_edges).models()
    used_columns = {column for body in BODIES for column in feature_columns(body, feature_map)}
    if phase_edges == "computed":
        used_columns |= {column for body in BODIES for column in feature_columns(body, "named")}
    x = inputs_of(2, 3, len(COLUMNS))
    spoilt = x.clone()
    spoilt[:, :, [column for column in range(len(COLUMNS)) if column not in used_columns]] = torch.nan
    for actual, expected in zip(fast(spoilt), reference(x), strict=True):
        assert torch.allclose(actual, expected, rtol=0, atol=EXACT)


def test_division_by_zero_below_the_diagonal_has_no_effect() -> None:
    reference, fast = phase(4, "named", "computed").models()
    x = inputs_of(2, 3, len(COLUMNS))
    x[:, :, COLUMNS.index("dyn_Sun_distance")] = -1e-8  # the sun is first: no pair divides by its distance
    assert_close(outputs_and_gradients(fast, x), outputs_and_gradients(reference, x))
