"""Before something is timed: does it compute what it should. A fast wrong answer is no figure."""

from functools import cache

import torch
from torch import Tensor

from bench.variants import Variant, build
from pgat_fast import load_config
from pgat_fast.plan.trace import example

SETTINGS = (
    "model.seq_len=9", "model.label_len=4", "model.pred_len=3", "model.d_model=26", "model.n_heads=2",
    "model.fusion_layers=2", "run.device=cpu",
)  # fmt: skip
"""Of the model that backends are compared on: small, of the same parts as the one that is timed."""
TOLERANCE = 1e-9
"""Of float64 outputs and gradients, relative to the largest."""


class ParityError(Exception):
    """What was to be timed computes something else than the reference."""


@cache
def require_parity(backend: str, combiner: str) -> None:
    """Compare a backend's outputs and gradients with the reference's, in float64 without dropout.

    Raises ParityError, which names what differs and by how much.
    """
    if backend == "reference":
        return
    config = load_config("configs/quickstart.yaml", [*SETTINGS, f"model.combiner={combiner}"])
    torch.manual_seed(0)
    reference = build(config, Variant("reference")).double().eval()
    # Kernels take no float64: of them `bench.gpu.parity` says whether they are right.
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


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not error <= allowed:
        raise ParityError(
            f"{what} differs from the reference's by {error:.2g} where {allowed:.2g} is allowed: nothing is timed "
            "that computes something else; run make test"
        )
