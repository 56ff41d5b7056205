"""Memory and FLOPs of our custom operators (`torch.library.custom_op`).

A dispatch mode intercepts such an operator as a single call, without its internal allocations. `trace` therefore runs
its Python code on fake tensors, with only two of many equal chunks (`pgat_kernels.instrumentation.few_chunks`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._library.custom_ops import OPDEFS

from pgat_fast.config.schema import Config
from pgat_fast.model.execution import bytes_to_keep
from pgat_kernels.matmul_precision import fast_exact_float32
from pgat_kernels.ops.chunked_ops import Chunking, RowsOperator, rows_operators

_kept: dict[Any, tuple[int, int]] = {}
"""Cache of `_count_kept`."""


def implementation(function: Any) -> Callable[..., Any] | None:
    """Return the Python code of one of our custom operators, or None for any other operator."""
    if getattr(function, "namespace", None) != "pgat":
        return None
    code: Callable[..., Any] = OPDEFS[function._schema.name]._init_fn
    return code


def prepare() -> None:
    """Run the processor checks of operators that need real data; call it outside of a `FakeTensorMode`."""
    with fast_exact_float32():
        pass


def keep_at_most(config: Config, device: str) -> int:
    """Return the bytes that each operator of the fast model may keep on `cpu` or `cuda`; see `Execution.keep`.

    The result is 0 if the whole step is compiled: its operators recompute everything.
    """
    whole_step = config.run.compile == "whole" or (device == "cuda" and config.run.compile == "on")
    return 0 if whole_step else bytes_to_keep(config.run)


def change_of_kept(function: Any, args: Sequence[Any], keep: int) -> int:
    """Return the bytes that an operator over rows stores for its backward pass if it may keep `keep` bytes.

    Negative for the backward operator, which frees them; 0 for all other operators.
    """
    name: str = function._schema.name
    operator = rows_operators.get(name.removesuffix("_backward"))
    if operator is None or keep == 0:
        return 0
    backward = name.endswith("_backward")
    _, size = _count_kept(operator, args[1:] if backward else args, keep)
    return -size if backward else size


def _count_kept(operator: RowsOperator, args: Sequence[Any], keep: int) -> tuple[int, int]:
    """Return the chunks and bytes kept, given the arguments of the forward pass; cached for equal shapes."""
    rows, weights, _, *chunking = args
    rate, options, *remaining = chunking
    shapes = [tuple((x.shape, x.dtype) for x in tensors) for tensors in (rows, weights)]
    key = (operator.name, keep, *shapes, rate, tuple(options), *remaining)
    if key not in _kept:
        _kept[key] = operator.count_kept(rows, weights, Chunking(*chunking), keep)
    return _kept[key]


def formulas_of_kept(keep: int) -> Mapping[Any, Callable[..., int]]:
    """Return FLOP formulas of the backward operators over rows; a kept chunk saves one forward pass.

    `keep`: bytes that each operator may keep.
    """

    def formula_of(operator: RowsOperator) -> Callable[..., int]:
        def formula(g: Any, *args: Any, **kwargs: Any) -> int:
            kept, _ = _count_kept(operator, args, keep)
            chunks: int = -(-len(args[0][0]) // args[5])
            return operator.backward_flops(g, *args) - operator.forward_flops(*args) * kept // chunks

        formula._get_raw = True  # type: ignore[attr-defined]  # as register_flop_formula: tensors, not shapes
        return formula

    if keep == 0:
        return {}
    return {
        operator.backward_operator._opoverload._overloadpacket: formula_of(operator)
        for operator in rows_operators.values()
    }
