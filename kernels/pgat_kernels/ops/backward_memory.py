"""Memory that backward passes hold: of a closure, of the kept chunks of an operator, of all operators of a result."""

from collections.abc import Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any

from torch import Tensor

from pgat_kernels.ops.registration import Backward


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


class KeptChunks:
    """Kept backward passes of the first chunks, which hold at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.full = limit, 0, False
        self.backs: dict[int, Backward] = {}

    def add(self, start: int, back: Backward, inputs: Sequence[Tensor]) -> None:
        """Keep the backward pass of the chunk at row `start`, unless it exceeds the limit; then keep no other, either.

        The memory of `inputs` is not counted. The 16-bit copy of the weights is small compared with what is kept.
        """
        size = bytes_held(back, inputs)
        self.full = self.size + size > self.limit
        if not self.full:
            self.size += size
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
        if isinstance(kept := getattr(node, "kept", None), KeptChunks):
            total += kept.size
        stack += [function for function, _ in node.next_functions]
    return total
