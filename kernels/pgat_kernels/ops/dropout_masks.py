"""Dropout masks of a chunk of rows, for programs that are plain tensor functions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from pgat_kernels.ops.compiled import call_compiled
from pgat_kernels.ops.dropout import hash_counters, keep_scale, kept_bytes, kept_words, site_key, words_of


class Masks(NamedTuple):
    """Dropout masks of a chunk, see `pgat_kernels.ops.dropout.keep_mask`."""

    rate: float
    seed: Tensor
    first_row: Tensor
    """Number of the first row, or numbers of all rows."""
    compiled: bool = False
    """Whether `run` compiles fragments."""

    def run(self, fragment: Callable[..., Any], *args: Any) -> Any:
        """Return `fragment(*args)`, compiled if `compiled` is set.

        A fragment is a module-level tensor function between two matrix products. It takes one pass over memory if it is
        compiled, many if not. One compilation serves all layers and chunks of the same shapes.
        """
        return call_compiled(fragment, *args) if self.compiled else fragment(*args)

    def keep(self, site: int, like: Tensor) -> Tensor:
        """Return the dropout mask for `like` as int8: 1 for kept elements, 0 for the others. The rate must be above 0.

        Convert it before multiplying: products of bytes and floats take twice as long as conversion and product
        together, in eager torch and in inductor.
        """
        rows, *rest = like.shape
        counters = hash_counters(rows, words_of(math.prod(rest)), self.first_row, like.device)
        arguments = counters, site_key(self.seed, site), self.rate
        words = call_compiled(kept_words, *arguments, dynamic=True) if self.compiled else kept_words(*arguments)
        return kept_bytes(words, tuple(like.shape))

    @property
    def scale(self) -> float:
        return keep_scale(self.rate)
