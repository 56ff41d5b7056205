"""The fast phase-aware processor, compared with the reference."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from pgat_fast.data.columns import BODIES, COLUMNS, feature_columns
from pgat_fast.model.optimized.phase import FastPhaseAwareProcessor
from pgat_fast.model.reference.initialization import initialize
from pgat_fast.model.reference.phase import PhaseAwareProcessor
from pgat_kernels.ops.dropout import draw_seed, keep_mask, keep_scale
from tests.pgat_fast.model.by_hand import EXACT, normal, randomize

SETTINGS = [(feature_map, edges) for feature_map in ("named", "positional") for edges in ("computed", "zero")]
every_setting = pytest.mark.parametrize(("feature_map", "phase_edges"), SETTINGS)
DISTANCES = [k for k, name in enumerate(COLUMNS) if name.endswith("distance")]


def inputs_of(batch: int, steps: int, seed: int = 1) -> Tensor:
    """Return inputs with distances away from 0: errors of ratios of numbers near 0 would hide all other errors."""
    x = normal(batch, steps, len(COLUMNS), seed=seed)
    x[:, :, DISTANCES] = x[:, :, DISTANCES].abs() + 0.5
    return x


def both(n_heads: int, feature_map: str, phase_edges: str) -> tuple[PhaseAwareProcessor, FastPhaseAwareProcessor]:
    """Return reference and fast processor with the same random parameters, float64, in evaluation mode."""
    reference = PhaseAwareProcessor(n_heads, feature_map, phase_edges)
    randomize(reference)
    fast = FastPhaseAwareProcessor(n_heads, feature_map, phase_edges).double().eval()
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return outputs, and gradients of the input and of every parameter."""
    x = x.detach().clone().requires_grad_()
    leaves = {"x": x} | dict(model.named_parameters())
    outputs = model(x)
    upstream = [normal(*output.shape, seed=seed).to(output.dtype) for seed, output in enumerate(outputs, 5)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    return dict(zip(("features", "adjacency", *leaves), (*outputs, *gradients), strict=True))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Check that differences are at most `relative` times the largest value of each tensor, or times 1."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        limit = relative * max(1.0, float(tensor.detach().abs().max()))
        worst = float((found[name] - tensor).detach().abs().max())
        assert worst <= limit, f"{name}: largest difference {worst}, allowed {limit}"


@every_setting
@pytest.mark.parametrize(("batch", "steps", "n_heads"), [(1, 1, 1), (3, 7, 8), (1, 7, 2), (3, 1, 4)])
def test_outputs_and_gradients_equal_the_reference(
    feature_map: str, phase_edges: str, batch: int, steps: int, n_heads: int
) -> None:
    reference, fast = both(n_heads, feature_map, phase_edges)
    x = inputs_of(batch, steps)
    assert_close(results(fast, x), results(reference, x), EXACT)


@every_setting
def test_names_shapes_and_initial_values_equal_the_reference(feature_map: str, phase_edges: str) -> None:
    states = []
    for part in (PhaseAwareProcessor, FastPhaseAwareProcessor):
        torch.manual_seed(3)
        model = part(8, feature_map, phase_edges)
        states.append((dict(model.named_parameters()), model.state_dict()))
        initialize(model)
        states[-1][0].update({f"initialized {name}": p for name, p in model.named_parameters()})
    for reference, fast in zip(*states, strict=True):
        assert list(reference) == list(fast)
        assert all(torch.equal(reference[name], fast[name]) for name in reference)


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
        reference, fast = both(8, feature_map, phase_edges)
        initialize(reference)
        fast.load_state_dict(reference.state_dict())
        x = inputs_of(3, 9, seed)
        exact = results(reference, x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            rounded = [results(model.float(), x.float()) for model in (reference, fast)]
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
        features, adjacency = fast(inputs_of(2, 3).float())
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
    reference, fast = both(8, "named", "computed")
    batch, steps, hidden = 2, 5, 64
    torch.manual_seed(7)
    masks = keep_mask(draw_seed(torch.device("cpu")), 0, (len(BODIES), batch * steps, hidden), 0.1)
    for body, mask in zip(reference.bodies.values(), masks, strict=True):
        body.add_module("dropout", GivenDropout(mask.view(batch, steps, hidden)))
    assert 0.85 < masks.double().mean() < 0.95
    x = inputs_of(batch, steps)
    torch.manual_seed(7)
    actual = results(fast.train(), x)
    assert_close(actual, results(reference, x), EXACT)
    again = results(fast, x)
    assert not torch.allclose(actual["features"], again["features"])


def test_evaluation_draws_no_random_numbers() -> None:
    _, fast = both(8, "named", "computed")
    before = torch.get_rng_state()
    fast(inputs_of(1, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_results_are_bitwise_repeatable() -> None:
    _, fast = both(8, "positional", "computed")
    fast.float().train()
    runs = []
    for _ in range(2):
        torch.manual_seed(2)
        runs.append(results(fast, inputs_of(3, 20).float()))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_parameters_of_functional_call_are_used_in_both_passes() -> None:
    reference, fast = both(2, "named", "computed")
    other = FastPhaseAwareProcessor(2, "named", "computed").double().eval()
    parameters = {name: p.detach().requires_grad_() for name, p in fast.named_parameters()}
    x = inputs_of(2, 4)
    outputs = functional_call(other, parameters, (x,))
    upstream = [normal(*output.shape, seed=seed) for seed, output in enumerate(outputs, 5)]
    gradients = torch.autograd.grad(outputs, list(parameters.values()), upstream)
    expected = results(reference, x)
    actual = dict(zip(("features", "adjacency", *parameters), (*outputs, *gradients), strict=True))
    assert_close(actual, {name: tensor for name, tensor in expected.items() if name != "x"}, EXACT)


@every_setting
def test_nan_in_columns_without_a_body_has_no_effect(feature_map: str, phase_edges: str) -> None:
    reference, fast = both(4, feature_map, phase_edges)
    used_columns = {column for body in BODIES for column in feature_columns(body, feature_map)}
    if phase_edges == "computed":
        used_columns |= {column for body in BODIES for column in feature_columns(body, "named")}
    x = inputs_of(2, 3)
    spoilt = x.clone()
    spoilt[:, :, [column for column in range(len(COLUMNS)) if column not in used_columns]] = torch.nan
    for actual, expected in zip(fast(spoilt), reference(x), strict=True):
        assert torch.allclose(actual, expected, rtol=0, atol=EXACT)


def test_division_by_zero_below_the_diagonal_has_no_effect() -> None:
    reference, fast = both(4, "named", "computed")
    x = inputs_of(2, 3)
    x[:, :, COLUMNS.index("dyn_Sun_distance")] = -1e-8  # the sun is first: no pair divides by its distance
    assert_close(results(fast, x), results(reference, x), EXACT)


@contextmanager
def counted_bytes(totals: dict[int, int]) -> Iterator[None]:
    """Record the bytes of every storage kept for the backward pass within the context in `totals`."""

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        totals[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def test_bytes_kept_for_a_timestep_are_bounded() -> None:
    fast = FastPhaseAwareProcessor(8, "named", "computed")
    bytes_of: list[int] = []
    for steps in (100, 200):
        totals: dict[int, int] = {}
        x = inputs_of(2, steps).float()
        with counted_bytes(totals):
            outputs = fast(x)
        assert all(output.requires_grad for output in outputs)
        totals.pop(x.untyped_storage().data_ptr(), None)  # the input exists in any case
        bytes_of.append(sum(totals.values()))
    a_timestep = (bytes_of[1] - bytes_of[0]) / 2 / 100
    assert a_timestep <= 2 * 13 * 32 * 4  # the normalised features and the states


@pytest.mark.compile
def test_compiled_training_equals_eager() -> None:
    fast = FastPhaseAwareProcessor(2, "named", "computed")
    x = inputs_of(1, 3).float()
    torch.manual_seed(4)
    expected = results(fast, x)
    fast.compile(fullgraph=True, dynamic=False, backend="aot_eager")  # for inductor see `test_golden_compiled`
    torch.manual_seed(4)
    assert_close(results(fast, x), expected, 1e-4)  # float32
