"""Base class and helpers of the parts of the fast model."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pgat_fast.model.execution import Execution
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.attention import attention as multi_head_attention
from pgat_kernels.ops.chunk_sizes import auto_chunk
from pgat_kernels.ops.chunked_ops import RowsOperator
from pgat_kernels.ops.dropout import draw_seed, dropout
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights
from pgat_kernels.torch_features import has_autocast


class FastModule(nn.Module):
    """Mixin that precedes a part of the reference: the same parameters with another forward pass."""

    execution = Execution()
    """Execution options of the model that contains the part; set by `FastPGAT`."""

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """Return the dtype of matrix products with `x`: that of autocast if enabled, as custom operators ignore it."""
        device_type = x.device.type
        if has_autocast(device_type) and torch.is_autocast_enabled(device_type):  # not on the meta device
            return torch.get_autocast_dtype(device_type)
        return x.dtype

    def rate(self, module: nn.Module) -> float:
        """Return the rate of a dropout module of the reference, 0 in evaluation."""
        assert isinstance(module, nn.Dropout)
        return module.p if self.training else 0.0

    def seed(self, rate: float, device: torch.device) -> Tensor:
        """Return a seed for operators that draw dropout masks; at rate 0 it is 0, without a random draw."""
        if rate == 0:
            return torch.zeros((), dtype=torch.int64, device=device)
        return draw_seed(device)

    def attend_heads(
        self, attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, seed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Compute `attention` up to its output projection, storing no weights: [B, Q, D], [B, T, D] -> [B, Q, D].

        `seed`: a separate seed for the dropout of the attention weights. `bias`: see `pgat_kernels.ops.attention`.
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
                repeatable=self.execution.deterministic,
            )

    def attend(
        self, attention: nn.MultiheadAttention, queries: Tensor, keys: Tensor, seed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Compute `attention` including its output projection; see `attend_heads`."""
        heads = self.attend_heads(attention, queries, keys, seed, bias)
        return F.linear(heads, *attention.out_proj.parameters())

    def over_timesteps(
        self,
        operator: RowsOperator,
        rows: list[Tensor],
        weights: list[Tensor],
        rate: float,
        options: list[int],
        numbers: int,
    ) -> Tensor:
        """Apply an operator over rows, one row a timestep, in chunks, with the execution options of this part.

        `rate`: of dropout. `options`: of the operator, without the kernels. `numbers`: see `chunk`.
        """
        first, execution = rows[0], self.execution
        dtype = self.product_dtype(first)
        chunk = self.chunk(first.shape[0], numbers, dtype, first.device)
        seed = self.seed(rate, first.device)
        options = [*options, int(execution.kernels)]
        with no_autocast(first.device):
            return operator(rows, weights, seed, rate, options, chunk, dtype, execution.compiled, execution.keep)

    def chunk(self, timesteps: int, numbers: int, dtype: torch.dtype, device: torch.device) -> int | None:
        """Return the timesteps of a chunk according to `combiner_chunk`; None: all at once, without recomputation.

        `numbers`: numbers of type `dtype` in the largest intermediate result of a timestep.
        """
        combiner_chunk = self.execution.combiner_chunk
        if combiner_chunk == "auto":
            return auto_chunk(timesteps, numbers * dtype.itemsize, device)
        return None if combiner_chunk is None else torch.sym_min(combiner_chunk, timesteps)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `function(*inputs)`, keeping only the inputs for the backward pass.

    Parameters must be among the inputs, see `reference.recompute`. Random numbers must be drawn from a seed.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def add_and_norm(t: Tensor, y: Tensor, norm: nn.LayerNorm, rate: float, seed: Tensor, site: int) -> Tensor:
    """Return LayerNorm(t + dropout(y))."""
    return F.layer_norm(t + dropout(y, rate, seed, site), norm.normalized_shape, norm.weight, norm.bias)


def stack_parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters of N modules of the same shapes as one tensor [N, ...] for each parameter of a module."""
    return [torch.stack(tensors) for tensors in zip(*(module.parameters() for module in modules), strict=True)]


def projections(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Return weight and bias of queries, keys and values, with the scale of the scores applied to the query rows."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = attention.embed_dim
    scale = torch.cat((bias.new_full((width,), attention.head_dim**-0.5), bias.new_ones(2 * width)))
    return weight * scale[:, None], bias * scale


def attention_weights(attention: nn.MultiheadAttention, norm: nn.LayerNorm) -> AttentionWeights:
    """Return the weights of self-attention with residual and LayerNorm."""
    return AttentionWeights(*projections(attention), *attention.out_proj.parameters(), *norm.parameters())


def feed_forward_weights(mlp: nn.Sequential, norm: nn.LayerNorm) -> FeedForwardWeights:
    """Return the weights of the reference's `feed_forward` with residual and LayerNorm."""
    return FeedForwardWeights(*mlp.parameters(), *norm.parameters())
