"""One case of every kernel of `bench.gpu.kernel_cases`, with inputs small enough for the interpreter."""

import torch
from torch import Tensor

from bench.gpu.kernel_cases import CASES, Case, numbers

_SHAPES: dict[str, list[tuple[int, ...]]] = {
    "13 nodes, mask, bias": [(2, 1, 13, 16)] * 3 + [(2, 13, 13)],
    "169 edges": [(1, 1, 169, 16)] * 3,
    "169 x 208, hidden 416": [(2, 5, 16), (24, 16), (24,), (16, 24), (16,), (16,), (16,)],
    "169 x 208": [(2, 5, 16), (2, 5, 16), (16, 0), (16, 16), (16,), (16,), (16,)],
    "3 x 169": [(1, 3, 3, 3), (3, 4, 1), (3, 4), (3, 8, 4), (3, 8), (3, 16, 8), (3, 16), (3, 16), (3, 16)],
    "78 pairs": [(2, 16), (3, 16), (16,), (1,)],
    "13 recurrences": [(2, 2, 2, 32), (2, 96, 32), (2, 96, 32), (2, 96), (2, 96)],
}
_EDGE_HEAD = [(2, 5, 16), (8, 16), (8,), (1, 8), (1,)]


def _with_inputs(case: Case, shapes: list[tuple[int, ...]]) -> Case:
    """Return the case with inputs of these shapes, in the dtypes of its own, for any number of timesteps."""

    def leaves(dtype: torch.dtype, device: torch.device, timesteps: int) -> list[Tensor]:
        originals = case.leaves(dtype, torch.device("meta"), 1)
        pairs = zip(shapes, originals, strict=True)
        return [numbers(shape, x.dtype, device, 0.5, salt=i) for i, (shape, x) in enumerate(pairs)]

    return case._replace(leaves=leaves)


SMALL_CASES = [
    _with_inputs(case, _EDGE_HEAD if case.operator == "edge_head" else _SHAPES[case.shape])
    for case in CASES
    if case.shape in _SHAPES
]
