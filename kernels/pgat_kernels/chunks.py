"""Operators over many independent rows, computed a chunk at a time and recomputed in the backward pass (rewrite 7).

Where no row depends on another, nothing of a row needs to be kept for the backward pass but its inputs: `RowsOperator`
computes the forward pass of a chunk again there, with the same dropout masks, right before the chunk's backward pass.
Memory becomes that of one chunk, and on a CPU a chunk stays in cache. Gradients of the weights are added up in the
order of the chunks: results are bitwise repeatable.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pgat_kernels.dropout import keep_mask, keep_scale, site_key
from pgat_kernels.products import fast_exact_float32, no_autocast

CACHE = 5 * 2**20
"""Bytes of the largest intermediate result of a chunk on a CPU. A few of them stay in the caches of a processor of
today, and they are reused from the heap: larger ones are given back to the system by the C library and fetched again,
page by page (measured with 12 MB: a third of a training step)."""

OCCUPANCY = 256 * 2**20
"""The same on a GPU, where a chunk must be large enough to fill it."""


class Masks(NamedTuple):
    """The dropout masks of a chunk: see `pgat_kernels.dropout.keep_mask`."""

    rate: float
    seed: Tensor
    first_row: Tensor
    """Number of the first row, or of every row."""
    compiled: bool = False
    """Whether `run` compiles."""

    def run(self, fragment: Callable[..., Any], *args: Any) -> Any:
        """Return `fragment(*args)`, compiled where that is asked for.

        A fragment is a module-level tensor function between two matrix products: one pass over memory where it is
        compiled, many where it is not. Compiled once, it serves every layer and chunk of the same shapes.
        """
        return call_compiled(fragment, *args) if self.compiled else fragment(*args)

    def at(self, site: int) -> tuple[Tensor, Tensor, float]:
        """Return what `keep_bytes` wants at `site`: key, first row, rate. Tensors, so that no site is compiled
        into a fragment."""
        return site_key(self.seed, site), self.first_row, self.rate

    def keep(self, site: int, like: Tensor) -> Tensor | None:
        """Which elements of `like` are kept; None where all are."""
        if self.rate == 0:
            return None
        return keep_mask(self.seed, site, tuple(like.shape), self.rate, self.first_row)

    @property
    def scale(self) -> float:
        return keep_scale(self.rate)


Backward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]


class Program(Protocol):
    """What is computed of a chunk: plain tensor functions, see `pgat_kernels.pairs`."""

    def __call__(
        self, rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
    ) -> tuple[Tensor, Backward]:
        """Inputs [chunk, ...] and weights -> result [chunk, ...], and from its gradient those of inputs and weights."""


def auto_chunk(rows: int, bytes_a_row: int, device: torch.device) -> int:
    """Rows at a time: as many as fit, evenly spread over the chunks.

    Args:
        rows: how many there are.
        bytes_a_row: of the largest intermediate result of one row.
        device: where it runs.
    """
    most = max(1, (CACHE if device.type == "cpu" else OCCUPANCY) // bytes_a_row)
    chunks = -(-rows // most)
    return -(-rows // chunks)


def take(x: Tensor, start: int, chunk: int) -> Tensor:
    """Rows `start` to `start + chunk` of `x`; where there are fewer, zeros follow: every chunk has one shape."""
    part = x[start : start + chunk]
    missing = chunk - part.shape[0]
    return F.pad(part, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else part


_compiled: dict[Any, Callable[..., Any]] = {}


def call_compiled(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, compiled whole for the shapes, dtypes and plain values of `args`, and what else torch guards.

    Each of these gets a code object of its own: torch counts compilations by code object, and gives up after a few.
    """

    def describe(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.shape, x.stride(), x.dtype, x.device, x.requires_grad, torch._C._dispatch_keys(x).raw_repr()
        return tuple(map(describe, x)) if isinstance(x, list | tuple) else x

    key = function, describe(args)
    if key not in _compiled:
        assert isinstance(function, FunctionType)
        own = FunctionType(
            function.__code__.replace(), function.__globals__, closure=function.__closure__, name=function.__name__
        )
        _compiled[key] = torch.compile(own, fullgraph=True, dynamic=False)
    # Operators are called above and below torch's autograd; a compilation holds for one of the two states.
    views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(views):
        return _compiled[key](*args)


def how_compiled(
    program: Callable[..., Any], compile_chunks: bool, device: torch.device
) -> tuple[Callable[..., Any], bool]:
    """Return the program as it is to be called, and whether its fragments (`Masks.run`) are compiled.

    On a CPU fragments alone are: products are calls of a library either way, and a dozen fragments that layers share
    compile in a third of the time of whole programs and run as fast. On a GPU the whole program is, for few launches.
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
    """FLOPs of the products of a program, counted on tensors without data; `how` is its last argument."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        own, maps = ([torch.empty(x.shape, dtype=x.dtype) for x in tensors] for tensors in (rows, weights))
        start = torch.empty((), dtype=torch.int64)
        y, back = program(own, maps, Masks(0.0, start, start), how)
        if backward:
            back(torch.empty_like(y))
    return int(counter.get_total_flops())


class RowsOperator:
    """A differentiable operator `pgat::NAME` made from a program, with a fake implementation for compilers.

    Call it with:
        rows: inputs, each [M, ...], contiguous, of one dtype; computed in at least float32.
        weights: of one dtype.
        seed: of the dropout masks, see `pgat_kernels.dropout.draw_seed`; not read where `rate` is 0.
        rate: of all dropout, [0, 1).
        options: plain numbers that the program reads.
        chunk: rows at a time, at least 1.
        dtype: of the large matrix products: that of the rows, or one of 16 bits. The program says what stays wider.
        compile_chunks: whether a chunk is computed by compiled code.

    It returns a tensor [M, ...] in the dtype of the rows.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        like: Callable[[list[Tensor]], Tensor],
        narrow: Callable[[list[Tensor], torch.dtype, Sequence[int]], list[Tensor]],
    ) -> None:
        """
        Args:
            name: of the operator in torch's registry.
            program: what to compute.
            like: from the inputs to an empty tensor of the result's shape and dtype.
            narrow: the weights with those of large products in a dtype, given the options.
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
            run, fragments = how_compiled(forward_chunk, compile_chunks, seed.device)
            low = narrow(weights, dtype, options)
            result = like(rows)
            count = len(result)
            with fast_exact_float32(), no_autocast(result.device):
                for start in range(0, count, chunk):
                    parts = [take(x, start, chunk) for x in rows]
                    y = run(parts, low, seed, seed.new_full((), start), rate, options, fragments)
                    result[start : start + chunk] = y[: count - start]
            return result

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
            run, fragments = how_compiled(backward_chunk, compile_chunks, seed.device)
            low = narrow(weights, dtype, options)
            results = [torch.empty_like(x) for x in rows]
            totals = [torch.zeros_like(w) for w in weights]
            with fast_exact_float32(), no_autocast(g.device):
                for start in range(0, len(g), chunk):
                    parts = [take(x, start, chunk) for x in rows]
                    g_rows, g_weights = run(
                        take(g, start, chunk), parts, low, seed, seed.new_full((), start), rate, options, fragments
                    )
                    for result, part in zip(results, g_rows, strict=True):
                        result[start : start + chunk] = part[: len(result) - start]
                    torch._foreach_add_(totals, list(g_weights))
            return [*results, *totals]

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
        self.program, self.narrow = program, narrow
        operator = torch.library.custom_op(f"pgat::{name}", forward, mutates_args=())
        operator.register_fake(lambda rows, *args: like(rows))
        operator.register_autograd(autograd, setup_context=setup_context)
        self.operator = operator
        self.backward_operator = torch.library.custom_op(f"pgat::{name}_backward", backward, mutates_args=())
        self.backward_operator.register_fake(
            lambda g, rows, weights, *args: [torch.empty_like(tensor) for tensor in (*rows, *weights)]
        )
        register_flop_formula(self.operator._opoverload._overloadpacket, get_raw=True)(self._forward_flops)
        register_flop_formula(self.backward_operator._opoverload._overloadpacket, get_raw=True)(self._backward_flops)

    def _forward_flops(
        self, rows: list[Tensor], weights: list[Tensor], seed: Tensor, rate: float, options: list[int], chunk: int,
        *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        return self._flops(rows, weights, options, chunk, backward=False)

    def _backward_flops(
        self, g: Tensor, rows: list[Tensor], weights: list[Tensor], seed: Tensor, rate: float, options: list[int],
        chunk: int, *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        """The forward pass is computed again."""
        return self._flops(rows, weights, options, chunk, backward=True)

    def _flops(
        self, rows: list[Tensor], weights: list[Tensor], options: list[int], chunk: int, *, backward: bool
    ) -> int:
        """Of the products of all chunks."""
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
    ) -> Tensor:
        """See the class.

        With `chunk` None torch's autograd computes all rows at once: nothing is recomputed, and everything is kept.
        """
        given = rows[0].dtype
        wide = torch.promote_types(given, torch.float32)  # what a model cast to 16 bits hands over is computed in 32
        rows, weights = [x.to(wide) for x in rows], [w.to(wide) for w in weights]
        if chunk is None:
            start = torch.zeros((), dtype=torch.int64, device=seed.device)
            with no_autocast(seed.device):
                y = self.program(rows, self.narrow(weights, dtype, options), Masks(rate, seed, start), options)[0]
        else:
            y = self.operator(rows, weights, seed, rate, options, chunk, dtype, compile_chunks)
        return y.to(given)
