"""Dropout whose masks are a function of seed and position, independent of the order in which they are drawn.

A chunk of timesteps gets the same mask in the forward pass and in the recomputation of the backward pass, for any chunk
size, in eager mode and compiled; no mask has to be kept. Drawing masks with torch's own generator takes a third of a
training step on a CPU.

Each decision takes 8 bits of a hash of a counter: four decisions per 32-bit integer. A rate is thus rounded to a
multiple of 1/256 (0.1 to 0.1016), but never to 0 if it is above 0; kept values are scaled by the rounded rate, so that
the expectation is exact. FlashAttention uses 8 bits per decision, too. All processors have vector instructions for
products of 32-bit integers, few for those of 64-bit integers: with two decisions per 64-bit integer, masks took four
fifths of the time of the softmax that they belong to on a processor with AVX2.

The hash is lowbias32 (Wellons, Prospecting for Hash Functions, 2018) with half of the key added to the counter and half
mixed in between its two multiplications, so that similar keys do not give shifted copies of one mask. The key is the
seed and the site, mixed by the finalizer of SplitMix64 (Steele, Lea & Flood, Fast Splittable Pseudorandom Number
Generators, 2014).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """Return the lowest 64 bits of `x` as an int64."""
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
KEY_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Multipliers of the hash, as int32."""
SHIFTS = (16, 15, 16)
LANES = 4
"""Number of 8-bit decisions per 32-bit integer."""
_CODES = 2**8


class Dropout(NamedTuple):
    """Parameters that determine the dropout mask for the rows of a tensor."""

    rate: float
    seed: Tensor
    """int64 scalar, see `draw_seed`; not read if the rate is 0."""
    site: int
    first_row: Tensor
    """int64 scalar: number of the first row if these are a chunk of a longer tensor."""


def draw_seed(device: torch.device) -> Tensor:
    """Draw a seed from torch's global generator of `device`: an int64 scalar there, without a synchronisation."""
    return torch.randint(2**62, (), dtype=torch.int64, device=device)


def _mix(x: Tensor) -> Tensor:
    """Hash int64 numbers in place by the finalizer of SplitMix64.

    Only the last shift is logical. Because the others are arithmetic, two in 2**63 numbers share a hash.
    """
    for shift, factor in zip((30, 27), KEY_FACTORS, strict=True):
        x.bitwise_xor_(x >> shift).mul_(factor)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


def _hash(counter: Tensor, key: Tensor) -> Tensor:
    """Return the hash of int32 numbers with the `key` from `site_key`."""

    def shifted(x: Tensor, shift: int) -> Tensor:  # torch shifts arithmetically
        return (x >> shift).bitwise_and_(2 ** (32 - shift) - 1)

    x = counter + key[0]
    x.bitwise_xor_(shifted(x, SHIFTS[0])).mul_(FACTORS[0]).bitwise_xor_(key[1])
    x.bitwise_xor_(shifted(x, SHIFTS[1])).mul_(FACTORS[1])
    return x.bitwise_xor_(shifted(x, SHIFTS[2]))


def _dropped_codes(rate: float) -> int:
    """Return how many of the 256 codes mean that an element is dropped."""
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate is {rate}: it must be at least 0 and below 1")
    return min(max(round(rate * _CODES), int(rate > 0)), _CODES - 1)


def first_kept_code(rate: float) -> int:
    """Return the smallest unsigned 8-bit code that means that an element is kept."""
    return _dropped_codes(rate)


def site_offset(site: int) -> int:
    """Return the number added to the seed at `site`, as an int64."""
    return _signed((site + 1) * _GOLDEN)


def keep_scale(rate: float) -> float:
    """Return the factor of kept values: 1 / (1 - the rounded rate)."""
    return _CODES / (_CODES - _dropped_codes(rate))


def site_key(seed: Tensor, site: int) -> Tensor:
    """Return the key of the hash at `site`: int32 [2], all values equally likely; `seed` is an int64 scalar."""
    key = _mix(seed + site_offset(site))
    # The lower and the upper half. Inductor of torch 2.11 cannot compile a view of a scalar as another dtype.
    return torch.stack((key, key >> 32)).to(torch.int32)


def hash_counters(rows: int, per_row: int, first_row: int | Tensor, device: torch.device) -> Tensor:
    """Return the consecutive counters to be hashed for `rows` times `per_row` integers: int32.

    Row numbers start at `first_row`, or are its elements if it is a vector. Counters beyond 32 bits wrap.
    """
    if not isinstance(first_row, Tensor):
        first_row = torch.full((), first_row, dtype=torch.int64, device=device)
    # Do not multiply the counter by a constant: inductor turns it into an index whose overflow is undefined in C++.
    if first_row.dim():
        steps = torch.arange(per_row, dtype=torch.int32, device=device)
        return ((first_row * per_row).to(torch.int32)[:, None] + steps).flatten()
    steps = torch.arange(rows * per_row, dtype=torch.int32, device=device)
    return steps.add_((first_row * per_row).to(torch.int32))


def random_codes(seed: Tensor, site: int, shape: tuple[int, ...], first_row: int | Tensor = 0) -> Tensor:
    """Return random int32 numbers of `shape`, all 2**32 values equally likely. For the arguments see `keep_mask`."""
    return _hash(hash_counters(shape[0], math.prod(shape[1:]), first_row, seed.device), site_key(seed, site)).view(
        shape
    )


def keep_mask(seed: Tensor, site: int, shape: tuple[int, ...], rate: float, first_row: int | Tensor = 0) -> Tensor:
    """Return the dropout mask, True for kept elements: bool `shape`; rows are the first dimension.

    Args:
        seed: int64 scalar, see `draw_seed`.
        site: number of the place in the model; masks of different places with one seed are independent.
        shape: of the tensor that dropout is applied to.
        rate: probability to drop an element, within [0, 1).
        first_row: number of the first row if `shape` is a chunk of a longer tensor, or int64 numbers of all rows.

    Raises:
        ValueError: if the rate is outside of [0, 1).
    """
    counters = hash_counters(shape[0], words_of(math.prod(shape[1:])), first_row, seed.device)
    kept = kept_bytes(kept_words(counters, site_key(seed, site), rate), shape)
    # Bytes of 0 and 1 can be viewed as booleans, but torch 2.13's inductor generates invalid C++ for that view.
    return kept != 0 if torch.compiler.is_compiling() else kept.view(torch.bool)


def kept_words(counters: Tensor, key: Tensor, rate: float) -> Tensor:
    """Return `keep_mask` for a `site_key`, four elements per integer: int32, of the shape of `hash_counters`.

    Each byte is 1 (kept) or 0; the first element is in the lowest byte. The key is an argument so that one compiled
    program serves all sites.
    """
    x = _hash(counters, key)
    # Four comparisons `byte >= first` at once: bit 7 of the sum is the result for the lower 7 bits of each byte.
    first = first_kept_code(rate)
    sums = (x & 0x7F7F7F7F).add_(_four_bytes(128 - first % 128))
    sums = sums.bitwise_or_(x) if first < 128 else sums.bitwise_and_(x)
    return (sums >> 7).bitwise_and_(0x01010101)


def words_of(elements: int) -> int:
    """Return the number of integers that hold the mask of a row of `elements` elements."""
    return -(-elements // LANES)


def kept_bytes(words: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the bytes of `kept_words` as int8 `shape`, a view whose rows may have gaps between them."""
    rows, *rest = shape
    return words.view(rows, -1).view(torch.int8)[:, : math.prod(rest)].view(shape)


def _four_bytes(byte: int) -> int:
    """Return the int32 whose bytes are all `byte`."""
    return byte * 0x01010101 - 2**32 * (byte > 127)


def dropout(x: Tensor, rate: float, seed: Tensor, site: int, first_row: int | Tensor = 0) -> Tensor:
    """Drop elements of `x` at `rate` and scale the others to keep the expectation; see `keep_mask` for arguments."""
    if rate == 0:
        return x
    return torch.where(keep_mask(seed, site, tuple(x.shape), rate, first_row), x * keep_scale(rate), 0.0)
