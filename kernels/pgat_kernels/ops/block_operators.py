"""Operators over rows, computed by Triton kernels where these run and by plain torch elsewhere.

A `BlockOperator` is the part of a model between two points where its rows are stored in memory: a feed-forward block,
or an output projection with its residual. It keeps only its arguments for the backward pass, which recomputes
intermediate results: on current GPUs that takes less time than writing and reading them (see `bench.gpu.cost_model`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels, use_kernel, wanted
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.registration import Backward, count_flops, register

Plain = Callable[[list[Tensor], list[Tensor], Masks, int], tuple[Tensor, Backward]]
"""Plain torch version: rows, weights, masks and site -> result and its backward pass."""

KernelForward = Callable[[list[Tensor], list[Tensor], Masks, int], Tensor]
KernelBackward = Callable[[Tensor, list[Tensor], list[Tensor], Masks, int], tuple[list[Tensor], list[Tensor]]]

MOST_WIDTH = 256
"""Largest number of columns for which a program holds whole rows."""


class BlockOperator:
    """Differentiable operator `pgat::NAME` with a backward operator, a fake implementation and a FLOP formula.

    Call it with:
        rows: inputs, of one dtype or of those that the operator specifies.
        weights: weights of products in one dtype, others in that of the rows.
        masks: of the dropout; `first_row` is a scalar.
        site: of the first dropout.

    Gradients of the weights are at least float32.
    """

    def __init__(
        self,
        name: str,
        plain: Plain,
        like: Callable[[list[Tensor], list[Tensor]], Tensor],
        kernels: Callable[[], tuple[KernelForward, KernelBackward]],
        takes: Callable[[list[Tensor], list[Tensor]], bool],
        product: int = 0,
    ) -> None:
        """Register the operators.

        Args:
            name: of the operator in torch's registry.
            plain: the same function in plain torch.
            like: maps rows and weights to an empty tensor of the result's shape and dtype.
            kernels: imports the functions that launch kernels, forward and backward.
            takes: whether kernels support the sizes of these rows and weights.
            product: index of the weight whose dtype is that of the products.
        """

        def by_kernels(rows: list[Tensor], weights: list[Tensor]) -> bool:
            return use_kernel(name, rows[0].device, (rows[0].dtype, weights[product].dtype), takes(rows, weights))

        def forward(
            rows: list[Tensor], weights: list[Tensor], seed: Tensor, first_row: Tensor, site: int, rate: float
        ) -> Tensor:
            masks = Masks(rate, seed, first_row)
            with no_autocast(seed.device):
                if by_kernels(rows, weights):
                    return kernels()[0](*_contiguous(rows, weights), masks, site)
                return plain(rows, weights, masks, site)[0].contiguous()

        def backward(
            g: Tensor,
            rows: list[Tensor],
            weights: list[Tensor],
            seed: Tensor,
            first_row: Tensor,
            site: int,
            rate: float,
        ) -> list[Tensor]:
            masks = Masks(rate, seed, first_row)
            with no_autocast(seed.device):
                if by_kernels(rows, weights):
                    g_rows, g_weights = kernels()[1](g.contiguous(), *_contiguous(rows, weights), masks, site)
                else:
                    g_rows, g_weights = plain(rows, weights, masks, site)[1](g)
            triples = zip([*rows, *weights], empty_gradients(rows, weights), [*g_rows, *g_weights], strict=True)
            return [_unshared(g_x.to(empty.dtype).reshape(x.shape)) for x, empty, g_x in triples]

        self.name, self.plain, self.takes, self.product = name, plain, takes, product
        self.operator, self.backward_operator = register(
            name, forward, backward, like, empty_gradients, self._forward_flops, self._backward_flops
        )

    def _forward_flops(self, rows: list[Tensor], weights: list[Tensor], *args: Any, **kwargs: Any) -> int:
        return count_flops(self.plain, rows, weights, 0, backward=False)

    def _backward_flops(self, g: Tensor, rows: list[Tensor], weights: list[Tensor], *args: Any, **kwargs: Any) -> int:
        """Count the recomputed forward pass, too."""
        return count_flops(self.plain, rows, weights, 0, backward=True)

    def __call__(
        self, rows: Sequence[Tensor], weights: Sequence[Tensor], masks: Masks, site: int
    ) -> tuple[Tensor, Backward]:
        """Return the result and its backward pass, see `pgat_kernels.ops.vjp`."""
        arguments = list(rows), list(weights), masks.seed, masks.first_row, site, masks.rate
        y: Tensor = self.operator(*arguments)

        def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            grads = self.backward_operator(g, *arguments)
            return grads[: len(rows)], grads[len(rows) :]

        return y, backward

    def wanted(self, kernels: int, rows: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
        """Return whether kernels should compute it; `kernels` is one of `dispatch.Kernels`."""
        if kernels == Kernels.LISTED and not self.takes(list(rows), list(weights)):
            return False
        return wanted(kernels, self.name, rows[0], self.size(weights), weights[self.product].dtype)

    def either(
        self, kernels: int, rows: Sequence[Tensor], weights: Sequence[Tensor], masks: Masks, site: int
    ) -> tuple[Tensor, Backward]:
        """Call the operator if kernels are wanted, else plain torch, which a compiler can fuse with adjacent code."""
        if self.wanted(kernels, rows, weights):
            return self(rows, weights, masks, site)
        return self.plain(list(rows), list(weights), masks, site)

    def size(self, weights: Sequence[Tensor]) -> int:
        """Return the size that identifies a case in the tables of measurements."""
        return max(weights[self.product].shape)


def _contiguous(rows: list[Tensor], weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return [x.contiguous() for x in rows], [w.contiguous() for w in weights]


def _unshared(x: Tensor) -> Tensor:
    """Return `x` contiguous and without a share in a larger storage: results of an operator must not share memory."""
    x = x.contiguous()
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()


def empty_gradients(rows: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """Return empty contiguous gradients: those of rows in the dtype of the rows, of weights in at least float32."""
    of_rows = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in rows]
    dtypes = [torch.promote_types(w.dtype, torch.float32) for w in weights]
    return of_rows + [torch.empty(w.shape, dtype=t, device=w.device) for w, t in zip(weights, dtypes, strict=True)]
