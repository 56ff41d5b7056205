"""Operators over many independent rows, computed a chunk at a time (rewrite 7).

If no row depends on another, only the inputs of a row have to be kept for the backward pass: `RowsOperator` recomputes
the forward pass of a chunk, with the same dropout masks, right before the backward pass of the chunk. Memory is that of
one chunk, and on a CPU a chunk stays in cache. If memory is plentiful, the intermediate results of the first chunks are
kept instead: the results are bitwise the same, and one forward pass is saved. Gradients of the weights are added up in
the order of the chunks, so that results are bitwise repeatable.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgat_kernels.matmul_precision import fast_exact_float32, no_autocast
from pgat_kernels.ops.backward_memory import KeptChunks, bytes_held
from pgat_kernels.ops.chunk_sizes import starts, take
from pgat_kernels.ops.compiled import how_compiled
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.registration import Backward, count_flops, register


class Program(Protocol):
    """Function that computes a chunk with plain tensor functions, see `pgat_kernels.ops.vjp`."""

    def __call__(
        self, rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
    ) -> tuple[Tensor, Backward]:
        """Return the result [chunk, ...] for inputs [chunk, ...] and weights, and its backward pass."""


class Chunking(NamedTuple):
    """Settings of an operator over rows, see `RowsOperator`."""

    rate: float
    options: list[int]
    chunk: int
    dtype: torch.dtype
    compile_chunks: bool


class _Kept(torch.autograd.Function):
    """Autograd function of a `RowsOperator` that keeps backward passes of chunks with their tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: "RowsOperator",
        count: int,
        keep: int,
        how: Chunking,
        seed: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.operator, ctx.count, ctx.how = operator, count, how
        ctx.save_for_backward(seed, *tensors)
        ctx.kept = KeptChunks(keep)
        with torch._C._AutoDispatchBelowAutograd():  # as torch calls a custom operator
            return operator.compute(tensors[:count], tensors[count:], seed, how, ctx.kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        seed, *tensors = ctx.saved_tensors  # raises if a weight has been modified since
        rows, weights = tensors[: ctx.count], tensors[ctx.count :]
        with torch._C._AutoDispatchBelowAutograd():
            grads = ctx.operator.differentiate(g.contiguous(), rows, weights, seed, ctx.how, ctx.kept)
        return *(None,) * 5, *grads


rows_operators: "dict[str, RowsOperator]" = {}
"""Operators by their name in torch's registry, `pgat::NAME`."""


class RowsOperator:
    """Differentiable operator `pgat::NAME` built from a program, with a fake implementation for compilers.

    Call it with:
        rows: inputs, each [M, ...], contiguous, of one dtype; computed in at least float32.
        weights: of one dtype.
        seed: of the dropout masks, see `pgat_kernels.ops.dropout.draw_seed`; not read if `rate` is 0.
        rate: of all dropout, [0, 1).
        options: plain numbers for the program.
        chunk: rows per chunk, at least 1.
        dtype: of the large matrix products: that of the rows, or a 16-bit one. The program decides what stays wider.
        compile_chunks: whether compiled code computes a chunk.
        keep: largest number of bytes of intermediate results to keep for backward passes; 0 recomputes every chunk.
            Chunks of a model that is compiled as a whole, and compiled chunks on a GPU, are always recomputed. The
            results are bitwise the same.

    It returns a tensor [M, ...] in the dtype of the rows.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        like: Callable[[list[Tensor]], Tensor],
        narrow: Callable[[list[Tensor], torch.dtype, Sequence[int]], list[Tensor]],
    ) -> None:
        """Register the operators.

        Args:
            name: of the operator in torch's registry.
            program: computes a chunk.
            like: maps the inputs to an empty tensor of the result's shape and dtype.
            narrow: casts the weights of large products to a dtype, given the options.
        """

        def forward_chunk(rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]) -> Tensor:
            return program(rows, weights, masks, options)[0]

        def backward_chunk(
            g: Tensor, rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
        ) -> tuple[list[Tensor], list[Tensor]]:
            return program(rows, weights, masks, options)[1](g)

        def forward(
            rows: list[Tensor],
            weights: list[Tensor],
            seed: Tensor,
            rate: float,
            options: list[int],
            chunk: int,
            dtype: torch.dtype,
            compile_chunks: bool,
        ) -> Tensor:
            return self.compute(rows, weights, seed, Chunking(rate, options, chunk, dtype, compile_chunks))

        def backward(
            g: Tensor,
            rows: list[Tensor],
            weights: list[Tensor],
            seed: Tensor,
            rate: float,
            options: list[int],
            chunk: int,
            dtype: torch.dtype,
            compile_chunks: bool,
        ) -> list[Tensor]:
            return self.differentiate(g, rows, weights, seed, Chunking(rate, options, chunk, dtype, compile_chunks))

        self.name, self.program, self.like, self.narrow = name, program, like, narrow
        self.forward_chunk, self.backward_chunk = forward_chunk, backward_chunk
        self.operator, self.backward_operator = register(
            name,
            forward,
            backward,
            lambda rows, weights: like(rows),
            lambda rows, weights: [torch.empty_like(tensor) for tensor in (*rows, *weights)],
            self.forward_flops,
            self.backward_flops,
        )
        rows_operators[f"pgat::{name}"] = self

    def compute(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        seed: Tensor,
        how: Chunking,
        kept: KeptChunks | None = None,
    ) -> Tensor:
        """Compute the forward pass; add backward passes of chunks to `kept` until it is full."""
        run, fragments = how_compiled(self.forward_chunk, how.compile_chunks, seed.device)
        cast_weights = self.narrow(list(weights), how.dtype, how.options)
        result = self.like(list(rows))
        count = len(result)
        with fast_exact_float32(), no_autocast(result.device):
            for start in starts(count, how.chunk):
                parts = [take(x, start, how.chunk) for x in rows]
                masks = Masks(how.rate, seed, seed.new_full((), start), fragments)
                if kept is None or kept.full:
                    y = run(parts, cast_weights, masks, how.options)
                else:
                    y, back = self.program(parts, cast_weights, masks, how.options)
                    kept.add(start, back, [*parts, *cast_weights, seed])
                result[start : start + how.chunk] = y[: count - start]
        return result

    def differentiate(
        self,
        g: Tensor,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        seed: Tensor,
        how: Chunking,
        kept: KeptChunks | None = None,
    ) -> list[Tensor]:
        """Compute gradients of rows and weights, with the backward passes in `kept`; recompute the other chunks."""
        run, fragments = how_compiled(self.backward_chunk, how.compile_chunks, seed.device)
        cast_weights = self.narrow(list(weights), how.dtype, how.options)
        results = [torch.empty_like(x) for x in rows]
        totals = [torch.zeros_like(w) for w in weights]
        with fast_exact_float32(), no_autocast(g.device):
            for start in starts(len(g), how.chunk):
                g_chunk = take(g, start, how.chunk)
                back = None if kept is None else kept.take(start)
                if back is None:
                    parts = [take(x, start, how.chunk) for x in rows]
                    masks = Masks(how.rate, seed, seed.new_full((), start), fragments)
                    g_rows, g_weights = run(g_chunk, parts, cast_weights, masks, how.options)
                else:
                    g_rows, g_weights = back(g_chunk)
                    del back  # frees the tensors it holds
                for result, part in zip(results, g_rows, strict=True):
                    result[start : start + how.chunk] = part[: len(result) - start]
                torch._foreach_add_(totals, list(g_weights))
        return [*results, *totals]

    def count_kept(self, rows: list[Tensor], weights: list[Tensor], how: Chunking, keep: int) -> tuple[int, int]:
        """Return the number of chunks kept within `keep` bytes, and the bytes they hold, from the shapes alone."""
        with torch.device("meta"):
            parts = [torch.empty((how.chunk, *x.shape[1:]), dtype=x.dtype) for x in rows]
            meta_weights = [torch.empty(w.shape, dtype=w.dtype) for w in weights]
            seed, start = (torch.empty((), dtype=torch.int64) for _ in range(2))
            cast_weights = self.narrow(meta_weights, how.dtype, how.options)
            _, back = self.program(parts, cast_weights, Masks(how.rate, seed, start), how.options)
        a_chunk = bytes_held(back, [*parts, *cast_weights, seed])
        kept = min(-(-len(rows[0]) // how.chunk), keep // a_chunk)
        return kept, kept * a_chunk

    def forward_flops(
        self, rows: list[Tensor], weights: list[Tensor], seed: Tensor, rate: float, options: list[int], chunk: int,
        *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        return self._flops(rows, weights, options, chunk, backward=False)

    def backward_flops(
        self, g: Tensor, rows: list[Tensor], weights: list[Tensor], seed: Tensor, rate: float, options: list[int],
        chunk: int, *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        """Count the recomputed forward pass, too."""
        return self._flops(rows, weights, options, chunk, backward=True)

    def _flops(
        self, rows: list[Tensor], weights: list[Tensor], options: list[int], chunk: int, *, backward: bool
    ) -> int:
        """Return the FLOPs of the products of all chunks."""
        parts = [torch.empty((chunk, *x.shape[1:]), dtype=x.dtype, device="meta") for x in rows]
        return count_flops(self.program, parts, weights, options, backward=backward) * -(-len(rows[0]) // chunk)

    def __call__(
        self,
        rows: list[Tensor],
        weights: list[Tensor],
        seed: Tensor,
        rate: float,
        options: list[int],
        chunk: int | None,
        dtype: torch.dtype,
        compile_chunks: bool,
        keep: int = 0,
    ) -> Tensor:
        """Return the result for all rows; for the arguments see the class.

        With `chunk` None torch's autograd computes all rows at once: everything is kept and nothing is recomputed.
        """
        in_dtype = rows[0].dtype
        acc_dtype = torch.promote_types(in_dtype, torch.float32)  # inputs of a model cast to 16 bits are computed in 32
        rows, weights = [x.to(acc_dtype) for x in rows], [w.to(acc_dtype) for w in weights]
        if chunk is None:
            start = torch.zeros((), dtype=torch.int64, device=seed.device)
            with no_autocast(seed.device):
                y = self.program(rows, self.narrow(weights, dtype, options), Masks(rate, seed, start), options)[0]
        elif keep > 0 and self._may_keep(rows, weights, compile_chunks):
            how = Chunking(rate, options, chunk, dtype, compile_chunks)
            # `apply` is untyped in torch.
            y = _Kept.apply(self, len(rows), keep, how, seed, *rows, *weights)  # type: ignore[no-untyped-call]
        else:
            y = self.operator(rows, weights, seed, rate, options, chunk, dtype, compile_chunks)
        return y.to(in_dtype)

    @staticmethod
    def _may_keep(rows: list[Tensor], weights: list[Tensor], compile_chunks: bool) -> bool:
        """Return whether backward passes can be kept (not in a graph compiled as a whole) and will be called."""
        if torch.compiler.is_compiling() or (compile_chunks and rows[0].device.type != "cpu"):
            return False
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*rows, *weights))
