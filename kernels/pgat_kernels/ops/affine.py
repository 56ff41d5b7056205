"""Affine maps composed to one, and attention over one key as the affine map that it is (rewrite 1).

Attention of any queries to ONE key x: the softmax of a single score is 1, whatever the query, the key weights and the
number of heads are. What is left is the value path,

    z = W_o (W_v x + b_v) + b_o,

an affine map; the query and key maps get no gradient. An affine map that follows, W z + b, merges with it:

    W (W_o (W_v x + b_v) + b_o) + b = (W W_o W_v) x + (W W_o b_v + W b_o + b).

So attention over one key and the next linear layer cost one product a token, and nothing in between has to be kept.
The products of weights do not grow with the number of tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Affine(NamedTuple):
    """x -> weight x + bias; leading dimensions [...] are maps side by side."""

    weight: Tensor
    """[..., O, I]"""
    bias: Tensor
    """[..., O]"""


def compose(first: Affine, second: Affine) -> Affine:
    """The map that applies `first`, then `second`.

    Args:
        first: weight [..., K, I], bias [..., K], float.
        second: weight [..., O, K], bias [..., O], of the same leading dimensions and dtype.

    Returns:
        weight [..., O, I], bias [..., O].

    Raises:
        RuntimeError: sizes or dtypes that do not fit each other.
    """
    bias = torch.matmul(second.weight, first.bias[..., None])[..., 0] + second.bias
    return Affine(torch.matmul(second.weight, first.weight), bias)


def single_key_attention(value: Affine, output: Affine) -> Affine:
    """What multi-head attention to one key does with that key, see the module's derivation.

    Args:
        value: the value projection of all heads, [..., A, I] and [..., A].
        output: the output projection, [..., O, A] and [..., O].
    """
    return compose(value, output)
