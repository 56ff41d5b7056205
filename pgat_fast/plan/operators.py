"""What operators of our own (`torch.library.custom_op`) hold while they run.

A mode that follows tensors sees such an operator as one call, not what it allocates inside. So its Python code runs
here, on tensors without data, and is followed. An operator that takes rows or queries a chunk at a time holds the bytes
of one chunk, however many there are: it is given few of them, so that counting takes no longer for a large batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._pytree import tree_leaves, tree_map_only

from pgat_kernels.chunks import Chunking, RowsOperator, auto_chunk, rows_operators
from pgat_kernels.products import fast_exact_float32

LARGE = 32 * 2**20
"""Bytes from which the C library of Linux (glibc) maps a block on its own, and gives it back when it is freed. Its
threshold grows to this as blocks are freed (`M_MMAP_THRESHOLD` in mallopt(3))."""

_GROUPS = 4
"""Groups of a long attention that are counted; what more of them hold is on a straight line."""


@dataclass(frozen=True)
class Held:
    """Bytes that are held at most: in all, in storages below `LARGE` bytes, and in others; each at its own moment."""

    all: int
    small: int
    large: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Held":
        """By `tensors`, which share no storage."""
        sizes = [tensor.untyped_storage().nbytes() for tensor in tensors]
        small = sum(size for size in sizes if size < LARGE)
        return cls(sum(sizes), small, sum(sizes) - small)

    def __add__(self, other: "Held") -> "Held":
        return Held(self.all + other.all, self.small + other.small, self.large + other.large)

    def __sub__(self, other: "Held") -> "Held":
        return Held(self.all - other.all, self.small - other.small, self.large - other.large)

    def __mul__(self, factor: int) -> "Held":
        return Held(factor * self.all, factor * self.small, factor * self.large)


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


def held_by(function: Any, args: Sequence[Any], result: Any, run: Callable[[Sequence[Any]], Held]) -> Held:
    """What an operator of our own holds beside its arguments, its result included.

    Args:
        function: the operator.
        args: of it, tensors without data.
        result: what it returns for them.
        run: counts what it holds for other arguments.
    """
    named = {argument.name: i for i, argument in enumerate(function._schema.arguments)}
    if "chunk" in named:
        return _in_chunks(function, args, named, result, run)
    if function._schema.name.startswith("pgat::attention"):
        return _in_blocks(args, named, run)
    return run(args)


def _in_chunks(
    function: Any, args: Sequence[Any], named: dict[str, int], result: Any, run: Callable[[Sequence[Any]], Held]
) -> Held:
    """Of an operator over rows, of which two whole chunks are counted, and what is left over where something is.

    Two, since the results of one are still there while the next is computed.
    """
    chunk, rows = args[named["chunk"]], args[named["rows"]]
    count = 2 * chunk + len(rows[0]) % chunk
    if len(rows[0]) <= count:
        return run(args)
    short = [
        tree_map_only(Tensor, lambda x: x[:count], arg) if i in (named["rows"], named.get("g")) else arg
        for i, arg in enumerate(args)
    ]
    # Its results are there from the beginning, and those for all rows are longer.
    return run(short) - Held.of(tensors_in(function(*short))) + Held.of(tensors_in(result))


def _in_blocks(args: Sequence[Any], named: dict[str, int], run: Callable[[Sequence[Any]], Held]) -> Held:
    """Of attention: where a block has only some of the queries of a group, all other tensors grow with the groups."""
    queries, keys = args[named["queries"]], args[named["keys"]]
    groups: int = len(queries)
    count: int = queries.shape[1]
    block = auto_chunk(count, 4 * args[named["n_heads"]] * keys.shape[1], queries.device)
    if block == count or groups <= _GROUPS:
        return run(args)
    by_group = [named[name] for name in ("g", "queries", "keys", "bias") if name in named]

    def of(groups: int) -> Held:
        return run([x[:groups] if i in by_group and x is not None else x for i, x in enumerate(args)])

    most = of(_GROUPS)
    return most + (most - of(_GROUPS - 1)) * (groups - _GROUPS)


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
    """Chunks and bytes that are kept, by the arguments of the forward pass."""
    rows, weights, _, *how = args
    return operator.count_kept(rows, weights, Chunking(*how), keep)


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


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of an operator's result."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
