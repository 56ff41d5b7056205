"""What is to know of operators of our own (`torch.library.custom_op`) to count what they hold and compute.

A mode that follows tensors sees such an operator as one call, not what it allocates inside. `trace` runs its Python
code on tensors without data, of many equal chunks only two (`pgat_kernels.ops.chunked_ops.few_chunks`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._library.custom_ops import OPDEFS

from pgat_fast.config.schema import Config
from pgat_fast.model.execution import bytes_to_keep
from pgat_kernels.matmul_precision import fast_exact_float32
from pgat_kernels.ops.chunked_ops import Chunking, RowsOperator, rows_operators

_kept: dict[Any, tuple[int, int]] = {}
"""What `_count_kept` has counted."""


def implementation(function: Any) -> Callable[..., Any] | None:
    """The Python code of an operator of our own, None for any other."""
    if getattr(function, "namespace", None) != "pgat":
        return None
    code: Callable[..., Any] = OPDEFS[function._schema.name]._init_fn
    return code


def prepare() -> None:
    """Find out what operators ask of a processor and need data for; call it outside of a `FakeTensorMode`."""
    with fast_exact_float32():
        pass


def keep_at_most(config: Config, device: str) -> int:
    """Bytes that each operator of the fast model may keep in the run, on `cpu` or `cuda`; see `Execution.keep`.

    0 where all of a step is compiled: such operators compute everything again.
    """
    whole = config.run.compile == "whole" or (device == "cuda" and config.run.compile == "on")
    return 0 if whole else bytes_to_keep(config.run)


def change_of_kept(function: Any, args: Sequence[Any], keep: int) -> int:
    """Bytes that an operator over rows leaves for its backward pass where it may keep `keep` bytes.

    Negative for its backward pass, which frees that; 0 for all other operators.
    """
    name: str = function._schema.name
    operator = rows_operators.get(name.removesuffix("_backward"))
    if operator is None or keep == 0:
        return 0
    backward = name.endswith("_backward")
    _, size = _count_kept(operator, args[1:] if backward else args, keep)
    return -size if backward else size


def _count_kept(operator: RowsOperator, args: Sequence[Any], keep: int) -> tuple[int, int]:
    """Chunks and bytes that are kept, by the arguments of the forward pass; counted once for equal shapes."""
    rows, weights, _, *how = args
    rate, options, *others = how
    shapes = [tuple((x.shape, x.dtype) for x in tensors) for tensors in (rows, weights)]
    key = (operator.name, keep, *shapes, rate, tuple(options), *others)
    if key not in _kept:
        _kept[key] = operator.count_kept(rows, weights, Chunking(*how), keep)
    return _kept[key]


def formulas_of_kept(keep: int) -> Mapping[Any, Callable[..., int]]:
    """FLOPs of the backward passes of operators over rows that may keep `keep` bytes: those chunks run once less."""

    def formula_of(operator: RowsOperator) -> Callable[..., int]:
        def formula(g: Any, *args: Any, **kwargs: Any) -> int:
            kept, _ = _count_kept(operator, args, keep)
            chunks: int = -(-len(args[0][0]) // args[5])
            return operator.backward_flops(g, *args) - operator.forward_flops(*args) * kept // chunks

        formula._get_raw = True  # type: ignore[attr-defined]  # tensors, not shapes: what register_flop_formula sets
        return formula

    if keep == 0:
        return {}
    return {
        operator.backward_operator._opoverload._overloadpacket: formula_of(operator)
        for operator in rows_operators.values()
    }
