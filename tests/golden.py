"""Parity cases: float64 results of the existing model for weights and inputs generated from their names.

`data/golden/<case>.json` holds the settings, the original layout and, for every parameter, the L2 norm of its gradient
and the inner product of the gradient with a known direction. `<case>.npz` holds outputs and intermediate results.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgat_fast import Config, load_config
from pgat_kernels.conditioning import SPREADS

FOLDER = Path(__file__).parent / "data" / "golden"
CASES = {
    "batched_small": "batched",
    "hierarchical_small": "hierarchical",
    "everything_small": "batched",
    "no_celestial_small": "hierarchical",  # does not use a combiner
}
"""Case -> the combiner used to compute it, which is not among the settings of the existing model."""
TOLERANCE = 1e-4
"""Tolerance of gradients, relative to their norms.

The existing model computes positions in float32 even when it runs in float64, so no two implementations agree beyond
float32. In well-conditioned cases, float32 rounding changes gradients by 1e-5 (hierarchical_small: 1.2e-5 at worst;
batched_small: 2.6e-5, a bias whose gradient is a sum that nearly cancels). Where row sums are near zero, the change
exceeds this tolerance (everything_small: 3e-4, no_celestial_small: 5e-4); `check_gradients` is then given the spread.
"""


def rng(name: str, salt: int) -> np.random.Generator:
    """Return the random generator seeded by `name` and `salt`."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + 7919 * salt))


def weight(name: str, shape: tuple[int, ...], salt: int) -> NDArray[np.float32]:
    """Return the value of the parameter `name` in the original layout."""
    draw = rng(name, salt).standard_normal(shape)
    if len(shape) > 1:
        draw /= np.sqrt(np.prod(shape[1:]))
    else:
        draw = 0.1 * draw + (1.0 if name.endswith("weight") else 0.0)
    return draw.astype(np.float32)


class Case(NamedTuple):
    name: str
    config: Config
    salt: int
    shapes: dict[str, tuple[int, ...]]
    gradients: dict[str, tuple[float, float]]
    without_gradient: set[str]
    outputs: list[NDArray[np.float32]]
    intermediates: dict[str, NDArray[np.float32]]
    settings: dict[str, Any]

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the weights in the original layout, requiring gradients."""
        return {
            name: torch.tensor(weight(name, shape, self.salt), dtype=dtype, requires_grad=True)
            for name, shape in self.shapes.items()
        }

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_enc, x_mark_enc, x_dec, x_mark_dec."""
        model, batch = self.config.model, self.outputs[0].shape[0]
        steps = {"enc": model.seq_len, "dec": model.label_len + model.pred_len}
        width = {"enc": model.enc_in, "dec": model.dec_in}
        values = [
            draw
            for side in ("enc", "dec")
            for draw in (
                rng(f"x_{side}", self.salt).standard_normal((batch, steps[side], width[side])),
                rng(f"x_mark_{side}", self.salt).random((batch, steps[side], 4)),
            )
        ]
        x_enc, x_mark_enc, x_dec, x_mark_dec = (torch.tensor(v.astype(np.float32), dtype=dtype) for v in values)
        return x_enc, x_mark_enc, x_dec, x_mark_dec

    def probed(self, outputs: list[Tensor]) -> Tensor:
        """Return the scalar whose gradients are recorded: the sum of every output times a known direction."""
        names = ["probe"] if len(outputs) == 1 else [f"probe/{i}" for i in range(len(outputs))]
        total = outputs[0].new_zeros(())
        for name, output in zip(names, outputs, strict=True):
            probe = rng(name, self.salt).standard_normal(tuple(output.shape))
            if len(outputs) == 1:
                probe = probe.astype(np.float32)
            total = total + (output * torch.tensor(probe, dtype=output.dtype)).sum()
        return total

    def check_outputs(self, outputs: list[Tensor], spread: Sequence[float] | None = None) -> None:
        """Assert that outputs agree within 1e-5, ten times the effect of float32 rounding except near zero sums.

        `spread` is that of the outputs in float32, as in `check_gradients`.
        """
        assert len(outputs) == len(self.outputs)
        for i, (actual, expected) in enumerate(zip(outputs, self.outputs, strict=True)):
            allowed = max(1e-5, SPREADS * spread[i] * float(np.linalg.norm(expected)) if spread else 0.0)
            assert np.abs(actual.detach().double().numpy() - expected).max() < allowed

    def check_gradients(self, gradients: dict[str, Tensor | None], spread: Mapping[str, float] | None = None) -> None:
        """Assert that norms and projections agree within `TOLERANCE` of the norm, or within float32 rounding.

        If a recorded gradient is rounding noise around a mathematical zero (a key bias under a softmax), the gradient
        must be as near to zero as float32 resolves next to the largest gradient.

        Args:
            gradients: gradients by the names of the original layout.
            spread: spread of the gradients in float32, by name, from `rounding_spread`, for badly conditioned cases:
                `SPREADS` times the spread is allowed where that exceeds `TOLERANCE`.
        """
        largest = max(norm for norm, _ in self.gradients.values())
        failures = []
        for name, (norm, projection) in self.gradients.items():
            gradient = gradients[name]
            if gradient is None:
                failures.append(f"{name} received no gradient")
                continue
            values = gradient.double().numpy()
            direction = rng("grad/" + name, self.salt).standard_normal(values.shape)
            tolerance = max(TOLERANCE, SPREADS * (spread or {}).get(name, 0.0))
            scale = 1e-6 * largest if norm < 1e-12 * largest else tolerance * norm
            actual = float(np.linalg.norm(values)), float((values * direction).sum())
            if abs(actual[0] - norm) > scale or abs(actual[1] - projection) > scale:
                failures.append(f"{name}: found {actual}, expected {(norm, projection)}")
        assert not failures, "\n".join(failures)
        assert {name for name in gradients if gradients[name] is not None} == set(self.gradients)


@cache
def load(name: str) -> Case:
    record = json.loads((FOLDER / f"{name}.json").read_text())
    arrays = np.load(FOLDER / f"{name}.npz")
    settings = record["config"] | {"combiner": CASES[name], "compatibility": "original"}
    return Case(
        name=name,
        config=load_config(settings),
        salt=record["salt"],
        shapes={key: tuple(shape) for key, shape in record["shapes"].items()},
        gradients={key: (norm, projection) for key, (norm, projection) in record["gradients"].items()},
        without_gradient=set(record["without_gradient"]),
        outputs=[arrays[key] for key in sorted(arrays.files) if key.startswith("output")],
        intermediates={key.removeprefix("mid/"): arrays[key] for key in arrays.files if key.startswith("mid/")},
        settings=settings,
    )
