"""Composition of affine maps, and attention over one key as an affine map (rewrite 1).

In attention of any queries to a single key x, the softmax of the only score is 1, whatever the query, the key weights
and the number of heads are. The result is the value path,

    z = W_o (W_v x + b_v) + b_o,

an affine map; the query and key maps get no gradient. A following affine map W z + b merges with it:

    W (W_o (W_v x + b_v) + b_o) + b = (W W_o W_v) x + (W W_o b_v + W b_o + b).

So attention over one key and the next linear layer take one product per token, and no intermediate result is kept. The
cost of the products of weights does not grow with the number of tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """Affine map x -> weight x + bias; leading dimensions [...] are a batch of maps."""

    weight: Tensor
    """[..., O, I]"""
    bias: Tensor
    """[..., O]"""


def compose(first: Affine, second: Affine) -> Affine:
    """Return the map that applies `first`, then `second`.

    Args:
        first: weight [..., K, I], bias [..., K], float.
        second: weight [..., O, K], bias [..., O], with the same leading dimensions and dtype.

    Returns:
        weight [..., O, I], bias [..., O].

    Raises:
        RuntimeError: if sizes or dtypes do not match.
    """
    bias = torch.matmul(second.weight, first.bias[..., None])[..., 0] + second.bias
    return Affine(torch.matmul(second.weight, first.weight), bias)


def single_key_attention(value: Affine, output: Affine) -> Affine:
    """Return the map from a single key to the result of multi-head attention, see the module's derivation.

    Args:
        value: the value projection of all heads, [..., A, I] and [..., A].
        output: the output projection, [..., O, A] and [..., O].
    """
    return compose(value, output)
