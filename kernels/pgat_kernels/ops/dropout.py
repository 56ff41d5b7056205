"""Dropout whose masks are a function of a seed and a place, not of the order in which they are drawn.

A chunk of timesteps gets the same mask in the forward pass and when the backward pass recomputes it, whatever the size
of the chunks, in eager mode and compiled; nothing has to be kept. Drawing masks with torch's own generator takes a
third of a training step on a CPU.

Each decision takes 8 bits of a hash of a counter: four decisions an integer of 32 bits. A rate is thus realised as a
multiple of 1/256 (0.1 as 0.1016), never as 0 where it is above 0; kept values are scaled by what was realised, so that
the expectation is exact. FlashAttention decides by 8 bits, too. Products of 32-bit integers have vector instructions on
every processor, those of 64-bit integers on few: with two decisions an integer of 64 bits, masks took four fifths of
the softmax they belong to on a processor with AVX2.

The hash is lowbias32 (Wellons, Prospecting for Hash Functions, 2018) with half of the key added to the counter and half
between its two multiplications: two keys that are near each other do not give shifted copies of one mask. The key is
the seed and the site through the finalizer of SplitMix64 (Steele, Lea & Flood, Fast Splittable Pseudorandom Number
Generators, 2014).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def _signed(x: int) -> int:
    """The number that the lowest 64 bits of `x` are as an int64."""
    return (x + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
KEY_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
FACTORS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of the hash, as int32."""
SHIFTS = (16, 15, 16)
LANES = 4
"""Decisions of 8 bits in an integer of 32."""
_CODES = 2**8


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
    for shift, factor in zip((30, 27), KEY_FACTORS, strict=True):
        x.bitwise_xor_(x >> shift).mul_(factor)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


def _hash(counter: Tensor, key: Tensor) -> Tensor:
    """Return the hash of int32 numbers; `key` as `site_key` gives it."""

    def shifted(x: Tensor, shift: int) -> Tensor:  # torch shifts arithmetically
        return (x >> shift).bitwise_and_(2 ** (32 - shift) - 1)

    x = counter + key[0]
    x.bitwise_xor_(shifted(x, SHIFTS[0])).mul_(FACTORS[0]).bitwise_xor_(key[1])
    x.bitwise_xor_(shifted(x, SHIFTS[1])).mul_(FACTORS[1])
    return x.bitwise_xor_(shifted(x, SHIFTS[2]))


def _dropped_codes(rate: float) -> int:
    """How many of the 256 values of 8 bits mean that an element is dropped."""
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate is {rate}: it must be at least 0 and below 1")
    return min(max(round(rate * _CODES), int(rate > 0)), _CODES - 1)


def first_kept_code(rate: float) -> int:
    """Return the smallest value of 8 bits, without sign, that means that an element is kept."""
    return _dropped_codes(rate)


def site_offset(site: int) -> int:
    """Return what is added to the seed at `site`, as an int64."""
    return _signed((site + 1) * _GOLDEN)


def keep_scale(rate: float) -> float:
    """Return what kept values are multiplied by: 1 / (1 - the rate that is realised)."""
    return _CODES / (_CODES - _dropped_codes(rate))


def site_key(seed: Tensor, site: int) -> Tensor:
    """Return the key of the hash at `site`, int32 [2], all values equally likely; `seed` is an int64 scalar."""
    return _mix(seed + site_offset(site)).reshape(1).view(torch.int32)


def hash_counters(rows: int, per_row: int, first_row: int | Tensor, device: torch.device) -> Tensor:
    """Return the numbers that are hashed for `rows` times `per_row` integers, one after the other: int32.

    Row numbers count on from `first_row`, or are its elements where it is a vector. Numbers beyond 32 bits wrap.
    """
    if not isinstance(first_row, Tensor):
        first_row = torch.full((), first_row, dtype=torch.int64, device=device)
    # No constant may multiply the counter: a compiler makes of it an index whose overflow C++ does not define.
    if first_row.dim():
        steps = torch.arange(per_row, dtype=torch.int32, device=device)
        return ((first_row * per_row).to(torch.int32)[:, None] + steps).flatten()
    steps = torch.arange(rows * per_row, dtype=torch.int32, device=device)
    return steps.add_((first_row * per_row).to(torch.int32))


def random_codes(seed: Tensor, site: int, shape: tuple[int, ...], first_row: int | Tensor = 0) -> Tensor:
    """Random numbers, all 2**32 values equally likely: int32 `shape`. Arguments: see `keep_mask`."""
    return _hash(hash_counters(shape[0], math.prod(shape[1:]), first_row, seed.device), site_key(seed, site)).view(
        shape
    )


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
    counters = hash_counters(shape[0], words_of(math.prod(shape[1:])), first_row, seed.device)
    kept = kept_bytes(kept_words(counters, site_key(seed, site), rate), shape)
    # Bytes of 0 and 1 are booleans already; inductor of torch 2.13 writes C++ for that view that does not compile.
    return kept != 0 if torch.compiler.is_compiling() else kept.view(torch.bool)


def kept_words(counters: Tensor, key: Tensor, rate: float) -> Tensor:
    """Return `keep_mask` for a `site_key`, four elements an integer: int32, of the shape of `hash_counters`.

    Each byte is 1 (kept) or 0, the first element in the lowest one. A program that is compiled once for all sites takes
    the key as an input.
    """
    x = _hash(counters, key)
    # Four comparisons `byte >= first` in one: bit 7 of the sum says so for the lower 7 bits of each byte.
    first = first_kept_code(rate)
    sums = (x & 0x7F7F7F7F).add_(_four_bytes(128 - first % 128))
    sums = sums.bitwise_or_(x) if first < 128 else sums.bitwise_and_(x)
    return (sums >> 7).bitwise_and_(0x01010101)


def words_of(elements: int) -> int:
    """Return the integers that the mask of a row of so many elements takes."""
    return -(-elements // LANES)


def kept_bytes(words: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the bytes of `kept_words` as int8 `shape`; rows may lie apart in memory."""
    rows, *rest = shape
    return words.view(rows, -1).view(torch.int8)[:, : math.prod(rest)].view(shape)


def _four_bytes(byte: int) -> int:
    """Return the int32 whose bytes are all `byte`."""
    return byte * 0x01010101 - 2**32 * (byte > 127)


def dropout(x: Tensor, rate: float, seed: Tensor, site: int, first_row: int | Tensor = 0) -> Tensor:
    """`x` with elements dropped at `rate`, others scaled to keep the expectation. Arguments: see `keep_mask`."""
    if rate == 0:
        return x
    return torch.where(keep_mask(seed, site, tuple(x.shape), rate, first_row), x * keep_scale(rate), 0.0)
