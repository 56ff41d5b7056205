"""Dropout whose masks are a function of a seed and a place, not of the order in which they are drawn.

A chunk of timesteps gets the same mask in the forward pass and when the backward pass recomputes it, whatever the size
of the chunks, in eager mode and compiled; nothing has to be kept. Drawing masks with torch's own generator takes a
third of a training step on a CPU.

Each decision takes 32 bits of a hash of a counter: two decisions an integer of 64 bits. The hash is that of
SplitMix64 (Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, 2014). A rate is thus realised as a
multiple of 2**-32; kept values are scaled by what was realised, so that the expectation is exact. (16 bits would do,
but compilers for CPUs do not vectorise what mixes them with float32.)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """The number that the lowest 64 bits of `x` are as an int64."""
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
_LANES = 2
"""Decisions of 32 bits in an integer of 64."""


class Dropout(NamedTuple):
    """What decides about the dropout of the rows of a tensor."""

    rate: float
    seed: Tensor
    """int64 scalar, see `draw_seed`; not read where the rate is 0."""
    site: int
    first_row: Tensor
    """int64 scalar: the number of the first row, where these are a chunk of more."""


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's global generator of `device`: an int64 scalar there. The host does not wait for it."""
    return torch.randint(2**62, (), dtype=torch.int64, device=device)


def _mix(x: Tensor) -> Tensor:
    """A hash of int64 numbers, in place: SplitMix64's finalizer.

    Only the last of its shifts is logical. With the others arithmetic, two in 2**63 numbers share a hash.
    """
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        x.bitwise_xor_(x >> shift).mul_(factor)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


def _dropped_codes(rate: float) -> int:
    """How many of the 2**32 values of 32 bits mean that an element is dropped."""
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate is {rate}: it must be at least 0 and below 1")
    return min(round(rate * 2**32), 2**32 - 1)


def first_kept_code(rate: float) -> int:
    """The smallest int32 code that means that an element is kept."""
    return _dropped_codes(rate) - 2**31


def site_offset(site: int) -> int:
    """What is added to the seed at `site`, as an int64."""
    return _signed((site + 1) * _GOLDEN)


def keep_scale(rate: float) -> float:
    """What kept values are multiplied by: 1 / (1 - the rate that is realised)."""
    return 2**32 / (2**32 - _dropped_codes(rate))


def _codes(seed: Tensor, site: int, rows: int, per_row: int, first_row: int | Tensor) -> Tensor:
    """Random int32 numbers, all values equally likely, [rows, per_row]; not contiguous where `per_row` is odd."""
    lanes = -(-per_row // _LANES)
    key = _mix(seed + site_offset(site))
    if isinstance(first_row, Tensor) and first_row.dim():
        counter = (first_row * lanes)[:, None] + torch.arange(lanes, dtype=torch.int64, device=seed.device)
    else:
        counter = torch.arange(rows * lanes, dtype=torch.int64, device=seed.device) + first_row * lanes
    # No constant may multiply the counter: a compiler makes of it an index whose overflow C++ does not define.
    codes = _mix(counter + key).view(rows, lanes).view(torch.int32)  # [rows, 2 * lanes]
    return codes if per_row == lanes * _LANES else codes[:, :per_row]


def random_codes(seed: Tensor, site: int, shape: tuple[int, ...], first_row: int | Tensor = 0) -> Tensor:
    """Random numbers, all 2**32 values equally likely: int32 `shape`. Arguments: see `keep_mask`."""
    return _codes(seed, site, shape[0], math.prod(shape[1:]), first_row).reshape(shape).contiguous()


def keep_mask(seed: Tensor, site: int, shape: tuple[int, ...], rate: float, first_row: int | Tensor = 0) -> Tensor:
    """Which elements are kept: bool `shape`; rows are the first dimension.

    Args:
        seed: int64 scalar, see `draw_seed`.
        site: number of the place in the model; different places of one seed are independent.
        shape: of the tensor to be dropped out.
        rate: probability to be dropped, within [0, 1).
        first_row: number of the first row where `shape` is a chunk of a longer tensor, or int64 numbers of all rows.

    Raises:
        ValueError: a rate outside of [0, 1).
    """
    codes = _codes(seed, site, shape[0], math.prod(shape[1:]), first_row)
    return (codes >= first_kept_code(rate)).view(shape)


def dropout(x: Tensor, rate: float, seed: Tensor, site: int, first_row: int | Tensor = 0) -> Tensor:
    """`x` with elements dropped at `rate`, others scaled to keep the expectation. Arguments: see `keep_mask`."""
    if rate == 0:
        return x
    return torch.where(keep_mask(seed, site, tuple(x.shape), rate, first_row), x * keep_scale(rate), 0.0)
