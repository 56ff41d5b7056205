"""Before something is timed: does it compute what it should. A fast wrong answer is no figure."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.variants import Variant, build
from pgat_fast import load_config
from pgat_fast.config import Config
from pgat_fast.device import resolve_device
from pgat_fast.plan.trace import example

SETTINGS = (
    "model.seq_len=9", "model.label_len=4", "model.pred_len=3", "model.d_model=26", "model.n_heads=2",
    "model.fusion_layers=2", "run.device=cpu",
)  # fmt: skip
"""Of the model that backends are compared on: small, of the same parts as the one that is timed."""
TOLERANCE = 1e-9
"""Of float64 outputs and gradients, relative to the largest."""
FLOAT32 = 1e-5
"""What a float32 gradient may be off by beyond that, relative to its norm: sums near zero are a matter of luck."""
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


class ParityError(Exception):
    """What was to be timed computes something else than the reference."""


@cache
def require_parity(backend: str, combiner: str) -> None:
    """Compare a backend's outputs and gradients with the reference's: a small model, eager, without dropout.

    In float64, but of kernels, which take none: in float32 on the device they run on, where they may have twice the
    error of plain torch. What is compiled or of 16 bits is compared by the tests and by `bench.gpu`.

    Raises ParityError, which names what differs and by how much.
    """
    if backend == "reference":
        return
    config = load_config(str(CONFIG), [*SETTINGS, f"model.combiner={combiner}"])
    torch.manual_seed(0)
    reference = build(config, Variant("reference")).double().eval()
    if backend == "triton":
        _require_kernels(config, reference)
        return
    ours = build(config, Variant(backend)).double().eval()
    ours.load_state_dict(reference.state_dict())
    inputs = [x.double() for x in example(config.model, 2)[:4]]
    right, found = (model(*inputs)[0] for model in (reference, ours))
    for forecast in (right, found):
        forecast.square().sum().backward()
    _compare("the forecast", found.detach(), right.detach())
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        own, its = (p.grad if p.grad is not None else torch.zeros_like(p) for p in (parameter, theirs[name]))
        _compare(f"the gradient of {name}", own, its)


def _require_kernels(config: Config, reference: nn.Module) -> None:
    device = resolve_device("auto")

    def gradients(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        model.load_state_dict(reference.state_dict())
        model.to(device, dtype).eval()
        forecast = model(*(x.to(device, dtype) for x in example(config.model, 2)[:4]))[0]
        forecast.square().sum().backward()
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        return [forecast.detach().double(), *(x.double() for x in found)]

    torch.manual_seed(1)
    exact = gradients(build(config, Variant("reference")), torch.float64)
    errors = []
    for backend in ("torch", "triton"):
        torch.manual_seed(1)
        own = load_config(config, ["run.device=auto"])
        found = gradients(build(own, Variant(backend)), torch.float32)
        errors.append([float((a - b).norm() / (1e-30 + b.norm())) for a, b in zip(found, exact, strict=True)])
    for what, allowed, error in zip(("the forecast", *dict(reference.named_parameters())), *errors, strict=True):
        if not error <= 2 * allowed + FLOAT32:
            raise ParityError(
                f"{what} by kernels is off by {error:.2g}, where plain torch is by {allowed:.2g}: nothing is timed "
                "that computes something else; run make gpu"
            )


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not error <= allowed:
        raise ParityError(
            f"{what} differs from the reference's by {error:.2g} where {allowed:.2g} is allowed: nothing is timed "
            "that computes something else; run make test"
        )
