"""Parity check before timing: a backend must compute what the reference computes."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.backend_spec import QUICKSTART, BackendSpec, build
from pgat_fast import load_config
from pgat_fast.config import Config
from pgat_fast.data.windows import example
from pgat_fast.utils.device import resolve_device
from pgat_kernels.conditioning import error_bounds, relative_errors, rounding_spread

SETTINGS = (
    "model.seq_len=9", "model.label_len=4", "model.pred_len=3", "model.d_model=26", "model.n_heads=2",
    "model.fusion_layers=2", "run.device=cpu",
)  # fmt: skip
"""Settings of the model that backends are compared on: small, with the same parts as the one that is timed."""
TOLERANCE = 1e-9
"""Tolerance for float64 outputs and gradients, relative to the largest element (or to 1, if that is larger)."""
WELL_CONDITIONED = 1e-4
"""Kernels are compared on inputs for which float32 rounding changes no result by more than this fraction of its norm.

The model divides by row sums, which random inputs bring near zero: of eight draws one moved a gradient by 2e-2, the
others by 4e-6 to 2e-4. Eight spreads are allowed (`conditioning.SPREADS`), so that an error of 1e-3 is detected
everywhere.
"""
SEEDS = 8
"""Number of draws of inputs to try."""


class ParityError(Exception):
    """A backend to be timed disagrees with the reference."""


@cache
def require_parity(backend: str, combiner: str) -> None:
    """Compare a backend's outputs and gradients with the reference's: a small model, eager, without dropout.

    The comparison is in float64. Kernels do not support it: they are compared in float32 on their device, and the error
    may be as large as rounding explains for these inputs (`pgat_kernels.conditioning`). Compiled and 16-bit specs
    are compared by the tests and by `bench.gpu.measure`.

    Raises ParityError, which names what differs and by how much.
    """
    if backend == "reference":
        return
    config = load_config(QUICKSTART, [*SETTINGS, f"model.combiner={combiner}"])
    torch.manual_seed(0)
    reference = build(config, BackendSpec("reference")).double().eval()
    if backend == "triton":
        _require_kernels(config, reference)
        return
    candidate = build(config, BackendSpec(backend)).double().eval()
    candidate.load_state_dict(reference.state_dict())
    inputs = [x.double() for x in example(config.model, 2)[:4]]
    expected, actual = (model(*inputs)[0] for model in (reference, candidate))
    for forecast in (expected, actual):
        forecast.square().sum().backward()
    _compare("the forecast", actual.detach(), expected.detach())
    reference_parameters = dict(reference.named_parameters())
    for name, parameter in candidate.named_parameters():
        actual_gradient, expected_gradient = (
            p.grad if p.grad is not None else torch.zeros_like(p) for p in (parameter, reference_parameters[name])
        )
        _compare(f"the gradient of {name}", actual_gradient, expected_gradient)


def _require_kernels(config: Config, reference: nn.Module) -> None:
    device = resolve_device("auto")
    names = [name for name, _ in reference.named_parameters()]
    weights = [parameter.detach().to(device, torch.float32) for parameter in reference.parameters()]

    def computed_by(backend: str, dtype: torch.dtype) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return a function of weights and inputs that returns the forecast and the gradients of all weights."""
        model = build(load_config(config, ["run.device=auto"]), BackendSpec(backend)).to(device, dtype).eval()

        def compute(tensors: list[Tensor]) -> list[Tensor]:
            leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
            parameters, inputs = leaves[: len(names)], tuple(leaves[len(names) :])
            forecast = functional_call(model, dict(zip(names, parameters, strict=True)), inputs)[0]
            gradients = torch.autograd.grad(forecast.square().sum(), parameters, materialize_grads=True)
            return [forecast.detach(), *gradients]

        return compute

    plain, float64_reference = computed_by("torch", torch.float32), computed_by("reference", torch.float64)
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        tensors = [*weights, *(x.to(device) for x in example(config.model, 2)[:4])]
        exact = float64_reference(tensors)
        spread, plain_errors = rounding_spread(plain, tensors), relative_errors(plain(tensors), exact)
        if max(*spread, *plain_errors) <= WELL_CONDITIONED:
            break
    else:
        raise ParityError(f"plain torch is off by more than {WELL_CONDITIONED:.2g} with all of {SEEDS} inputs")
    errors = relative_errors(computed_by("triton", torch.float32)(tensors), exact)
    bounds = error_bounds(spread, torch.float32, plain_errors)
    for what, error, allowed in zip(("the forecast", *names), errors, bounds, strict=True):
        if not error <= allowed:
            raise ParityError(
                f"{what} by kernels is off by {error:.2g}, where rounding explains {allowed:.2g}: nothing is timed "
                "that computes something else; run make gpu"
            )


def _compare(what: str, actual: Tensor, expected: Tensor) -> None:
    error = float((actual - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not error <= allowed:
        raise ParityError(
            f"{what} differs from the reference's by {error:.2g} where {allowed:.2g} is allowed: nothing is timed "
            "that computes something else; run make test"
        )
