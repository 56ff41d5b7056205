"""Self-attention over tokens that are an affine map of a few numbers (rewrite 4).

The tokens of the first block of the batched combiner are t_i = W a_i + b with a_i in R^3. With s_i = [a_i, 1] and
R = [W, b] (D x 4), t_i = R s_i, and the attention of the block depends only on s:

    score_ij = (Wq t_i + bq)' (Wk t_j + bk) / sqrt(d) = s_i' M s_j     with M = Q' K / sqrt(d) (4 x 4 per head),
               Q = Wq R + [0 0 0 bq], K = Wk R + [0 0 0 bk]
    sum_j p_ij (Wv t_j + bv) = V sum_j p_ij s_j                        with V = Wv R + [0 0 0 bv]

so that the output projection reads 4 numbers per head instead of d: U_h = Wo_h V_h, and

    MHA(t)_i = sum_h U_h (sum_j p_ij s_j) + bo.

With attention dropout the weights of a row no longer add up to 1; the formulas do not assume that they do. Projections
of D columns become 4, and scores of depth d become depth 4. `low_rank_weights` computes the maps M, U and R once from
the parameters of the block, under torch's autograd: gradients reach the parameters through them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.vjp import dropout_add_norm, softmax_dropout


class LowRankWeights(NamedTuple):
    """Weights of a self-attention block over tokens R [a, 1]; r is one more than the number of values of a token."""

    residual: Tensor
    """R, [D, r]"""
    scores: Tensor
    """M of all heads, [r, H r]: s @ scores gives s' M_h for every head."""
    outer: Tensor
    """U of all heads, [D, H r]"""
    outer_bias: Tensor
    """[D]"""
    norm: Tensor
    norm_bias: Tensor


def low_rank_weights(
    projection: Tensor,
    projection_bias: Tensor,
    inner: Tensor,
    inner_bias: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    norm: Tensor,
    norm_bias: Tensor,
    *,
    n_heads: int,
) -> LowRankWeights:
    """Compute the maps of the module's derivation.

    Args:
        projection, projection_bias: W [D, 3] and b [D], which map values to tokens.
        inner, inner_bias, outer, outer_bias: `in_proj` [3 D, D], [3 D] and `out_proj` [D, D], [D] of the attention.
        norm, norm_bias: of the LayerNorm after the residual sum, [D].
        n_heads: H.
    """
    residual = torch.cat((projection, projection_bias[:, None]), dim=1)  # [D, r]
    width, rank = residual.shape
    head = width // n_heads
    constant = torch.cat((torch.zeros_like(inner[:, : rank - 1]), inner_bias[:, None]), dim=1)
    q, k, v = (inner @ residual + constant).view(3, n_heads, head, rank).unbind(0)  # [H, d, r]
    scores = q.transpose(1, 2) @ k * head**-0.5  # [H, r, r]
    heads = outer.view(width, n_heads, head).transpose(0, 1) @ v  # [H, D, r]
    return LowRankWeights(
        residual,
        scores.permute(1, 0, 2).reshape(rank, n_heads * rank),
        heads.transpose(0, 1).reshape(width, n_heads * rank),
        outer_bias,
        norm,
        norm_bias,
    )


def _attend(
    mapped: Tensor, s: Tensor, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Compute softmax(m s') s of every head: [G, H, T, r], [G, T, r] -> [G, H, T, r].

    It uses matrix products although these are thin: sums of r terms, which a compiler fuses with the softmax so that no
    score is stored, take half as long again on a CPU. Results of r columns are computed transposed, as long rows, which
    takes half as long.
    """
    groups, n_heads, tokens, rank = mapped.shape
    rows = mapped.view(groups, n_heads * tokens, rank)
    masks = masks._replace(first_row=masks.first_row * (n_heads * tokens))
    scores = torch.bmm(rows, s.transpose(1, 2)).view(-1, tokens)
    dropped, softmax_back = softmax_dropout(scores, s.dtype, masks, site)

    def weighted(weights: Tensor) -> Tensor:  # [G, H T, T] -> [G, H T, r]
        return torch.bmm(s.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2).contiguous()

    p = dropped.view(groups, n_heads * tokens, tokens)

    def backward(g: Tensor) -> tuple[Tensor, Tensor]:
        g = g.reshape(groups, n_heads * tokens, rank) * masks.scale
        g_scores = softmax_back(torch.bmm(g, s.transpose(1, 2)).view(-1, tokens))
        g_scores = g_scores.view(groups, n_heads * tokens, tokens)
        g_s = torch.baddbmm(torch.bmm(g.transpose(1, 2), p), rows.transpose(1, 2), g_scores)  # [G, r, T]
        return weighted(g_scores).view_as(mapped), g_s.transpose(1, 2)

    return (weighted(p) * masks.scale).view_as(mapped), backward


def low_rank_attention_block(
    a: Tensor, w: LowRankWeights, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, LowRankWeights]]]:
    """Compute LayerNorm(t + dropout(MHA(t))) of the tokens t = R [a, 1]: [G, T, r - 1] -> [G, T, D].

    Uses the dropout sites `site` and `site` + 1. Returns the result and its backward pass, see `pgat_kernels.ops.vjp`;
    in float32 (float64) throughout.
    """
    groups, tokens, _ = a.shape
    rank = w.scores.shape[0]
    n_heads = w.scores.shape[1] // rank
    width = w.residual.shape[0]
    s = torch.cat((a, torch.ones_like(a[..., :1])), dim=-1)  # [G, T, r]

    def to_heads(x: Tensor) -> Tensor:  # [G T, H r] -> [G, H T, r]
        return x.view(groups, tokens, n_heads, rank).transpose(1, 2).reshape(groups, n_heads * tokens, rank)

    def from_heads(x: Tensor) -> Tensor:  # [G, H T, r] -> [G T, H r]
        return x.view(groups, n_heads, tokens, rank).transpose(1, 2).reshape(groups * tokens, n_heads * rank)

    flat = s.view(groups * tokens, rank)
    mapped = to_heads(flat @ w.scores)  # [G, H T, r]
    o, attend_back = _attend(mapped.view(groups, n_heads, tokens, rank), s, masks, site)
    attended = from_heads(o.reshape(groups, n_heads * tokens, rank))
    y = torch.addmm(w.outer_bias, attended, w.outer.t())
    t = (flat @ w.residual.t()).view(groups, tokens, width)
    result, norm_back = dropout_add_norm(t, y.view(groups, tokens, width), w.norm, w.norm_bias, masks, site + 1)

    def backward(g: Tensor) -> tuple[Tensor, LowRankWeights]:
        g_sum, g_y, g_norm, g_norm_bias = norm_back(g)
        g_flat_sum, g_y = g_sum.view(groups * tokens, width), g_y.view(groups * tokens, width)
        g_attended = to_heads(g_y @ w.outer)
        g_heads, g_s = attend_back(g_attended.view(groups, n_heads, tokens, rank))
        g_mapped = from_heads(g_heads.reshape(groups, n_heads * tokens, rank))
        g_s = g_s.reshape(groups * tokens, rank) + g_mapped @ w.scores.t() + g_flat_sum @ w.residual
        grads = LowRankWeights(
            g_flat_sum.t() @ flat, flat.t() @ g_mapped, g_y.t() @ attended, g_y.sum(dim=0), g_norm, g_norm_bias
        )
        return g_s.view_as(s)[..., :-1].contiguous(), grads

    return result, backward
