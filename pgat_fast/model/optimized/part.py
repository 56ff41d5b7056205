"""What the parts of the fast model have in common: how they are executed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pgat_fast.model.execution import Execution
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.attention import attention as multi_head_attention
from pgat_kernels.ops.chunked_ops import auto_chunk
from pgat_kernels.ops.dropout import draw_seed, dropout
from pgat_kernels.ops.vjp import AttentionWeights, FeedForwardWeights, OutputWeights
from pgat_kernels.torch_features import has_autocast


class Part(nn.Module):
    """Mixed into a part of the reference, in front of it: its parameters, another forward pass."""

    execution = Execution()
    """Of the model that the part belongs to; `FastPGAT` sets it."""

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of matrix products with `x`: autocast's where it is on, which operators of our own do not see."""
        kind = x.device.type
        if has_autocast(kind) and torch.is_autocast_enabled(kind):  # not on the meta device
            return torch.get_autocast_dtype(kind)
        return x.dtype

    def rate(self, module: nn.Module) -> float:
        """The rate of a dropout module of the reference; 0 in evaluation."""
        assert isinstance(module, nn.Dropout)
        return module.p if self.training else 0.0

    def seed(self, rate: float, device: torch.device) -> Tensor:
        """A seed for operators that draw dropout masks; where nothing is dropped, none is drawn."""
        if rate == 0:
            return torch.zeros((), dtype=torch.int64, device=device)
        return draw_seed(device)

    def attend_heads(
        self, attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, seed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """`attention` up to its output projection, without holding its weights: [B, Q, D], [B, T, D] -> [B, Q, D].

        `seed`: of the dropout of the attention weights, its own. `bias`: see `pgat_kernels.ops.attention`.
        """
        dtype = self.product_dtype(queries)
        with no_autocast(queries.device):
            return multi_head_attention(
                queries,
                keys,
                *projections(attention),
                bias,
                n_heads=attention.num_heads,
                seed=seed,
                rate=attention.dropout if self.training else 0.0,
                dtype=dtype,
                compile_blocks=self.execution.compiled,
            )

    def attend(
        self, attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, seed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """What `attention` computes in the reference; see `attend_heads`."""
        heads = self.attend_heads(attention, queries, keys, seed, bias)
        return F.linear(heads, attention.out_proj.weight, attention.out_proj.bias)

    def chunk(self, timesteps: int, numbers: int, dtype: torch.dtype, device: torch.device) -> int | None:
        """Timesteps at a time, as `combiner_chunk` says; None: all, and none twice.

        `numbers`, in `dtype`: of the largest intermediate result of a timestep.
        """
        asked = self.execution.combiner_chunk
        if asked == "auto":
            return auto_chunk(timesteps, numbers * dtype.itemsize, device)
        return None if asked is None else min(asked, timesteps)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, of which nothing but the inputs is kept for the backward pass.

    Parameters must be among the inputs, see `reference.recompute`; no random numbers may be drawn but from a seed.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def add_and_norm(t: Tensor, y: Tensor, norm: nn.LayerNorm, rate: float, seed: Tensor, site: int) -> Tensor:
    """LayerNorm(t + dropout(y))."""
    return F.layer_norm(t + dropout(y, rate, seed, site), norm.normalized_shape, norm.weight, norm.bias)


def projections(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Weight and bias of queries, keys and values; the scale of the scores goes into the query rows."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = attention.embed_dim
    scale = torch.cat((bias.new_full((width,), attention.head_dim**-0.5), bias.new_ones(2 * width)))
    return weight * scale[:, None], bias * scale


def attention_weights(attention: nn.MultiheadAttention, norm: nn.LayerNorm) -> AttentionWeights:
    """Of self-attention with residual and LayerNorm."""
    out = attention.out_proj
    return AttentionWeights(*projections(attention), out.weight, out.bias, norm.weight, norm.bias)


def feed_forward_weights(mlp: nn.Sequential, norm: nn.LayerNorm) -> FeedForwardWeights:
    """Of the reference's `feed_forward` with residual and LayerNorm."""
    layers: list[Any] = list(mlp)
    first, second = layers[0], layers[3]
    return FeedForwardWeights(first.weight, first.bias, second.weight, second.bias, norm.weight, norm.bias)


def output_weights(mlp: nn.Sequential) -> OutputWeights:
    """Of the map from a token to the weight of its edge."""
    layers: list[Any] = list(mlp)
    first, second = layers[0], layers[3]
    return OutputWeights(first.weight, first.bias, second.weight, second.bias)
