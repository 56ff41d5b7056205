"""Operators over many independent rows, computed a chunk at a time (rewrite 7).

If no row depends on another, only the inputs of a row have to be kept for the backward pass: `RowsOperator` recomputes
the forward pass of a chunk, with the same dropout masks, right before the backward pass of the chunk. Memory is that of
one chunk, and on a CPU a chunk stays in cache. If memory is plentiful, the intermediate results of the first chunks are
kept instead: the results are bitwise the same, and one forward pass is saved. Gradients of the weights are added up in
the order of the chunks, so that results are bitwise repeatable.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pgat_kernels.matmul_precision import fast_exact_float32, no_autocast
from pgat_kernels.ops.dropout import hash_counters, keep_scale, kept_bytes, kept_words, site_key, words_of

CACHE = 5 * 2**20
"""Bytes of the largest intermediate result of a chunk on a CPU. A few results of this size fit into the caches of
current processors and are reused from the heap. The C library returns larger ones to the system and fetches them again,
page by page (measured with 12 MB: a third of a training step)."""

OCCUPANCY = 256 * 2**20
"""Bytes of the largest intermediate result of a chunk on a GPU, which a chunk must fill."""


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


Backward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]


class Program(Protocol):
    """Function that computes a chunk with plain tensor functions, see `pgat_kernels.ops.vjp`."""

    def __call__(
        self, rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
    ) -> tuple[Tensor, Backward]:
        """Return the result [chunk, ...] for inputs [chunk, ...] and weights, and its backward pass."""


def auto_chunk(rows: int, bytes_a_row: int, device: torch.device) -> int:
    """Return the number of rows per chunk: as many as fit, evenly spread over the chunks.

    Args:
        rows: total number of rows.
        bytes_a_row: size of the largest intermediate result of one row.
        device: on which the chunks are computed.
    """
    max_rows = max(1, (CACHE if device.type == "cpu" else OCCUPANCY) // bytes_a_row)
    chunks = -(-rows // max_rows)
    return -(-rows // chunks)


def take(x: Tensor, start: int, chunk: int) -> Tensor:
    """Return rows `start` to `start + chunk` of `x`, zero-padded so that all chunks have the same shape."""
    part = x[start : start + chunk]
    missing = chunk - part.shape[0]
    return F.pad(part, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else part


_few: ContextVar[bool] = ContextVar("few_chunks", default=False)


@contextmanager
def few_chunks() -> Iterator[None]:
    """Compute only the first two of equal chunks within the context, to count memory on tensors without data.

    Two chunks are needed because the results of one are still allocated while the next is computed. Recurrences also
    take only two steps.
    """
    token = _few.set(True)
    try:
        yield
    finally:
        _few.reset(token)


def starts(count: int, chunk: int) -> list[int]:
    """Return the first row of every chunk; within `few_chunks`, of the first two and of a last partial one."""
    offsets = list(range(0, count, chunk))
    return [*offsets[:2], *(start for start in offsets[2:] if start + chunk > count)] if _few.get() else offsets


_compiled: dict[Any, Callable[..., Any]] = {}


def call_compiled(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> Any:
    """Return `function(*args)`, compiled for the shapes, dtypes and plain values of `args` and torch's other guards.

    With `dynamic` one compilation serves all sizes above 1. Each compilation has its own code object, because torch
    counts compilations by code object and gives up after a few.
    """

    def describe(x: Any) -> Any:
        if isinstance(x, Tensor):
            layout = (x.dim(), x.is_contiguous()) if dynamic else (x.shape, x.stride())
            return *layout, x.dtype, x.device, x.requires_grad, torch._C._dispatch_keys(x).raw_repr()
        return tuple(map(describe, x)) if isinstance(x, list | tuple) else x

    key = function, describe(args)
    if key not in _compiled:
        assert isinstance(function, FunctionType)
        function_copy = FunctionType(
            function.__code__.replace(), function.__globals__, closure=function.__closure__, name=function.__name__
        )
        _compiled[key] = torch.compile(function_copy, fullgraph=True, dynamic=dynamic)
    # Operators are called above and below torch's autograd; a compilation is valid for one of the two states.
    views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(views):
        return _compiled[key](*args)


def how_compiled(
    program: Callable[..., Any], compile_chunks: bool, device: torch.device
) -> tuple[Callable[..., Any], bool]:
    """Return the program to call, and whether its fragments (`Masks.run`) are compiled.

    On a CPU only fragments are compiled: products are library calls either way, and the dozen fragments that layers
    share compile in a third of the time of whole programs and run as fast. On a GPU the whole program is compiled, to
    reduce the number of launches.
    """
    if compile_chunks and device.type != "cpu":
        return partial(call_compiled, program), False
    return program, compile_chunks


def count_flops(
    program: Callable[..., tuple[Tensor, Backward]],
    rows: list[Tensor],
    weights: list[Tensor],
    how: Any,
    *,
    backward: bool,
) -> int:
    """Count the FLOPs of the products of a program on tensors without data; `how` is its last argument."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        meta_rows, meta_weights = (
            [torch.empty(x.shape, dtype=x.dtype) for x in tensors] for tensors in (rows, weights)
        )
        start = torch.empty((), dtype=torch.int64)
        y, back = program(meta_rows, meta_weights, Masks(0.0, start, start), how)
        if backward:
            back(torch.empty_like(y))
    return int(counter.get_total_flops())


def storages_in(back: Any) -> dict[int, int]:
    """Return the storages of the tensors in `back`, a backward pass (its closure) or a list: pointer -> bytes."""
    sizes: dict[int, int] = {}
    visited: set[int] = set()
    stack = [back]
    while stack:
        x = stack.pop()
        if id(x) in visited:
            continue
        visited.add(id(x))
        if isinstance(x, Tensor):
            storage = x.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
        elif isinstance(x, list | tuple):
            stack.extend(x)
        elif isinstance(x, FunctionType):
            for cell in x.__closure__ or ():
                with suppress(ValueError):  # a variable that was never assigned
                    stack.append(cell.cell_contents)
    return sizes


def bytes_held(back: Backward, inputs: Sequence[Tensor]) -> int:
    """Return the bytes that a backward pass holds in addition to `inputs`."""
    input_storages = storages_in(inputs)
    return sum(size for storage, size in storages_in(back).items() if storage not in input_storages)


class Chunking(NamedTuple):
    """Settings of an operator over rows, see `RowsOperator`."""

    rate: float
    options: list[int]
    chunk: int
    dtype: torch.dtype
    compile_chunks: bool


class _Backs:
    """Kept backward passes of the first chunks, which hold at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.full = most, 0, False
        self.backs: dict[int, Backward] = {}

    def add(self, start: int, back: Backward, inputs: Sequence[Tensor]) -> None:
        """Keep the backward pass of the chunk at row `start`, unless it exceeds the limit; then keep no other, either.

        The memory of `inputs` is not counted. The 16-bit copy of the weights is small compared with what is kept.
        """
        size = bytes_held(back, inputs)
        self.full = self.held + size > self.most
        if not self.full:
            self.held += size
            self.backs[start] = back

    def take(self, start: int) -> Backward | None:
        """Return and release the backward pass of the chunk at row `start`; None if there is none.

        A second backward pass over a retained graph therefore recomputes the forward pass.
        """
        return self.backs.pop(start, None)


def bytes_kept(result: Tensor) -> int:
    """Return the bytes that operators over rows keep for the backward pass of `result`, which has not run yet.

    Tensors that autograd saves, such as inputs and weights, are not counted.
    """
    total, visited, stack = 0, set(), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if isinstance(kept := getattr(node, "kept", None), _Backs):
            total += kept.held
        stack += [function for function, _ in node.next_functions]
    return total


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
        ctx.kept = _Backs(keep)
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

        def forward_chunk(
            rows: list[Tensor],
            weights: list[Tensor],
            seed: Tensor,
            first_row: Tensor,
            rate: float,
            options: Sequence[int],
            fragments: bool,
        ) -> Tensor:
            return program(rows, weights, Masks(rate, seed, first_row, fragments), options)[0]

        def backward_chunk(
            g: Tensor,
            rows: list[Tensor],
            weights: list[Tensor],
            seed: Tensor,
            first_row: Tensor,
            rate: float,
            options: Sequence[int],
            fragments: bool,
        ) -> tuple[list[Tensor], list[Tensor]]:
            return program(rows, weights, Masks(rate, seed, first_row, fragments), options)[1](g)

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

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            rows, weights, seed, *ctx.plain = inputs
            ctx.count = len(rows)
            ctx.save_for_backward(seed, *rows, *weights)

        def autograd(ctx: Any, g: Tensor) -> tuple[Any, ...]:
            seed, *tensors = ctx.saved_tensors
            rows, weights = tensors[: ctx.count], tensors[ctx.count :]
            grads = self.backward_operator(g.contiguous(), rows, weights, seed, *ctx.plain)
            return grads[: ctx.count], grads[ctx.count :], *(None,) * 6

        self.name = name
        rows_operators[f"pgat::{name}"] = self
        self.program, self.like, self.narrow = program, like, narrow
        self.forward_chunk, self.backward_chunk = forward_chunk, backward_chunk
        operator = torch.library.custom_op(f"pgat::{name}", forward, mutates_args=())
        operator.register_fake(lambda rows, *args: like(rows))
        operator.register_autograd(autograd, setup_context=setup_context)
        self.operator = operator
        self.backward_operator = torch.library.custom_op(f"pgat::{name}_backward", backward, mutates_args=())
        self.backward_operator.register_fake(
            lambda g, rows, weights, *args: [torch.empty_like(tensor) for tensor in (*rows, *weights)]
        )
        register_flop_formula(self.operator._opoverload._overloadpacket, get_raw=True)(self.forward_flops)
        register_flop_formula(self.backward_operator._opoverload._overloadpacket, get_raw=True)(self.backward_flops)

    def compute(
        self,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        seed: Tensor,
        how: Chunking,
        kept: _Backs | None = None,
    ) -> Tensor:
        """Compute the forward pass; add backward passes of chunks to `kept` until it is full."""
        rate, options, chunk, dtype, compile_chunks = how
        run, fragments = how_compiled(self.forward_chunk, compile_chunks, seed.device)
        cast_weights = self.narrow(list(weights), dtype, options)
        result = self.like(list(rows))
        count = len(result)
        with fast_exact_float32(), no_autocast(result.device):
            for start in starts(count, chunk):
                parts = [take(x, start, chunk) for x in rows]
                first_row = seed.new_full((), start)
                if kept is None or kept.full:
                    y = run(parts, cast_weights, seed, first_row, rate, options, fragments)
                else:
                    y, back = self.program(parts, cast_weights, Masks(rate, seed, first_row, fragments), options)
                    kept.add(start, back, [*parts, *cast_weights, seed])
                result[start : start + chunk] = y[: count - start]
        return result

    def differentiate(
        self,
        g: Tensor,
        rows: Sequence[Tensor],
        weights: Sequence[Tensor],
        seed: Tensor,
        how: Chunking,
        kept: _Backs | None = None,
    ) -> list[Tensor]:
        """Compute gradients of rows and weights, with the backward passes in `kept`; recompute the other chunks."""
        rate, options, chunk, dtype, compile_chunks = how
        run, fragments = how_compiled(self.backward_chunk, compile_chunks, seed.device)
        cast_weights = self.narrow(list(weights), dtype, options)
        results = [torch.empty_like(x) for x in rows]
        totals = [torch.zeros_like(w) for w in weights]
        with fast_exact_float32(), no_autocast(g.device):
            for start in starts(len(g), chunk):
                g_chunk = take(g, start, chunk)
                back = None if kept is None else kept.take(start)
                if back is None:
                    parts = [take(x, start, chunk) for x in rows]
                    g_rows, g_weights = run(
                        g_chunk, parts, cast_weights, seed, seed.new_full((), start), rate, options, fragments
                    )
                else:
                    g_rows, g_weights = back(g_chunk)
                    del back  # frees the tensors it holds
                for result, part in zip(results, g_rows, strict=True):
                    result[start : start + chunk] = part[: len(result) - start]
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
