"""Cases of the operators that have kernels, at production sizes, for compiling, counting and measuring.

The inputs of a case are a function of dtype, device and timesteps; on the meta device they have no data.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from pgat_kernels.ops.aspects import aspects
from pgat_kernels.ops.block_operators import BlockOperator
from pgat_kernels.ops.blocks import edge_head_operator, feed_forward_operator, projection_operator
from pgat_kernels.ops.dropout import Dropout
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.edge_tokens import edge_tokens_operator
from pgat_kernels.ops.graph_attention import MOST_WHOLE, graph_attention, plain_forward
from pgat_kernels.ops.graph_inputs import GraphInputs
from pgat_kernels.ops.gru import gru_bank

DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TIMESTEPS: Final = 4000
"""Timesteps of a batch of 16 with a history of 250."""
BODIES: Final = 13
WIDTH: Final = 208
HEADS: Final = 8
RATE: Final = 0.1


def numbers(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1.0, *, salt: int
) -> Tensor:
    """Return normal random numbers, reproducible by `salt`; on the meta device a tensor without data."""
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(salt)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def scalar(value: int, device: torch.device) -> Tensor:
    """Return `value` as an int64 tensor without dimensions."""
    return torch.full((), value, dtype=torch.int64, device=device)


class Case(NamedTuple):
    """An operator and the sizes of its inputs."""

    operator: str
    shape: str
    dtypes: tuple[str, ...]
    leaves: Callable[[torch.dtype, torch.device, int], list[Tensor]]
    """Function of dtype, device and timesteps that returns the inputs with gradients."""
    run: Callable[[list[Tensor], bool], Tensor]
    """The operator on such inputs, by kernels or, if the second argument is False, in plain torch."""
    size: int
    """The size passed to `pgat_kernels.dispatch.wanted`."""
    threshold: str | None
    """The operator name passed to `wanted`; None if the model does not call it for this case."""

    def rows(self, timesteps: int) -> int:
        """Return the rows of its first input, as `pgat_kernels.dispatch.wanted` counts them."""
        shape = self.leaves(DTYPES[self.dtypes[0]], torch.device("meta"), timesteps)[0].shape
        heads = shape[1] if self.operator == "graph_attention" else 1
        return shape.numel() // shape[-1] // heads


class _Block(NamedTuple):
    operator: BlockOperator
    shape: str
    rows: Callable[[int], list[tuple[int, ...]]]
    """Timesteps -> shapes of the rows."""
    weights: list[tuple[int, ...]]
    float32_weights: tuple[int, ...]
    """Indices of the weights that stay float32."""
    product_rows: tuple[int, ...] = ()
    """Indices of the rows in the dtype of the products."""
    only_float32: bool = False
    """Whether float32 is its only dtype."""


def _feed_forward(hidden: int) -> list[tuple[int, ...]]:
    return [(hidden, WIDTH), (hidden,), (WIDTH, hidden), (WIDTH,), (WIDTH,), (WIDTH,)]


def _projection(inner: int, rank: int) -> list[tuple[int, ...]]:
    return [(WIDTH, rank), (WIDTH, inner), (WIDTH,), (WIDTH,), (WIDTH,)]


_TRANSFORM = [(52, 1), (52,), (104, 52), (104,), (WIDTH, 104), (WIDTH,), (WIDTH,), (WIDTH,)]

_BLOCKS = (
    _Block(feed_forward_operator, "169 x 208, hidden 416", lambda s: [(s, 169, WIDTH)], _feed_forward(416), (4, 5)),
    _Block(feed_forward_operator, "507 x 208, hidden 832", lambda s: [(s * 13, 39, WIDTH)], _feed_forward(832), (4, 5)),
    _Block(
        projection_operator,
        "169 x 208",
        lambda s: [(s, 169, WIDTH), (s, 169, WIDTH)],
        _projection(WIDTH, 0),
        (0, 3, 4),
        product_rows=(1,),
    ),
    _Block(
        projection_operator,
        "169 x 208, low rank",
        lambda s: [(s, 169, 4), (s, 169, 32)],
        _projection(32, 4),
        (),
        only_float32=True,
    ),
    _Block(edge_head_operator, "169 x 208", lambda s: [(s, 169, WIDTH)], [(104, WIDTH), (104,), (1, 104), (1,)], ()),
    _Block(
        edge_tokens_operator,
        "3 x 169",
        lambda s: [(s, 13, 13, 3)],
        [(3, *shape) for shape in _TRANSFORM],
        (0, 1, 6, 7),
    ),
)


def _of_block(block: _Block) -> Case:
    def leaves(dtype: torch.dtype, device: torch.device, timesteps: int) -> list[Tensor]:
        accumulation_dtype = torch.promote_types(dtype, torch.float32)
        rows = [
            numbers(shape, dtype if i in block.product_rows else accumulation_dtype, device, salt=i)
            for i, shape in enumerate(block.rows(timesteps))
        ]
        weights = []
        for i, shape in enumerate(block.weights):
            weight_dtype = accumulation_dtype if i in block.float32_weights else dtype
            weights.append(numbers(shape, weight_dtype, device, max(1, shape[-1]) ** -0.5, salt=10 + i))
        return rows + weights

    def run(tensors: list[Tensor], kernels: bool) -> Tensor:
        count = len(block.rows(1))
        rows, weights, device = tensors[:count], tensors[count:], tensors[0].device
        seed, first = scalar(11, device), scalar(0, device)
        if kernels:
            y: Tensor = block.operator.operator(rows, weights, seed, first, 0, RATE)
            return y
        return block.operator.plain(rows, weights, Masks(RATE, seed, first), 0)[0]

    dtypes = ("fp32",) if block.only_float32 else tuple(DTYPES)
    size = max(block.weights[block.operator.product])
    # The low-rank projection is dispatched together with its attention.
    threshold = None if "low rank" in block.shape else block.operator.name
    return Case(block.operator.name, block.shape, dtypes, leaves, run, size, threshold)


@lru_cache(maxsize=4)
def _adjacency(graphs: int, nodes: int, device: torch.device) -> Tensor:
    """Return random adjacencies, cached: timed code must not draw random numbers."""
    return numbers((graphs, nodes, nodes), torch.float32, device, salt=2)


def _of_attention(shape: str, graphs: int, nodes: int, depth: int, masked: bool) -> Case:
    """Return a case of attention in `graphs` graphs per timestep.

    Queries, keys and values are side by side in memory, as a projection writes them.
    """

    def leaves(dtype: torch.dtype, device: torch.device, timesteps: int) -> list[Tensor]:
        count = timesteps * graphs
        q, k, v = numbers((count, nodes, 3, HEADS, depth), dtype, device, salt=0).permute(2, 0, 3, 1, 4)
        accumulation_dtype = torch.promote_types(dtype, torch.float32)
        return [q, k, v, *([numbers((count, nodes, nodes), accumulation_dtype, device, salt=1)] if masked else [])]

    def run(tensors: list[Tensor], kernels: bool) -> Tensor:
        q, k, v, *bias = tensors
        device = q.device
        adjacency = _adjacency(len(q), nodes, device) if masked else None
        dropout = Dropout(RATE, scalar(11, device), 0, scalar(0, device))
        inputs = GraphInputs(q, k, v, adjacency, bias[0] if bias else None, dropout, 0.3, q.shape[-1] ** -0.5)
        if kernels:
            return graph_attention(q, k, v, adjacency, inputs.bias, threshold=inputs.threshold, dropout=dropout)
        return plain_forward(inputs)[0]

    threshold = "graph_attention" if depth >= 16 else "low_rank_attention"
    return Case("graph_attention", shape, ("fp32",) if depth < 16 else tuple(DTYPES), leaves, run, nodes, threshold)


def _gru(recompute: bool) -> Callable[[list[Tensor], bool], Tensor]:
    def run(tensors: list[Tensor], kernels: bool) -> Tensor:
        x, input_weight, hidden_weight, input_bias, hidden_bias = tensors
        return gru_bank(x, input_weight, hidden_weight, input_bias, hidden_bias, x.dtype, kernels, recompute)

    return run


def _gru_leaves(dtype: torch.dtype, device: torch.device, timesteps: int) -> list[Tensor]:
    sizes = (16, max(1, timesteps // 16), BODIES, 32), (BODIES, 96, 32), (BODIES, 96, 32), (BODIES, 96), (BODIES, 96)
    return [numbers(size, dtype, device, 1.0 if i == 0 else 32**-0.5, salt=i) for i, size in enumerate(sizes)]


def _aspects(tensors: list[Tensor], kernels: bool) -> Tensor:
    y: Tensor = aspects(*tensors, kernels)
    return y


def _aspects_leaves(dtype: torch.dtype, device: torch.device, timesteps: int) -> list[Tensor]:
    sizes = (timesteps, WIDTH), (78, WIDTH), (WIDTH,), (1,)
    return [numbers(size, dtype, device, WIDTH**-0.5 if i == 2 else 1.0, salt=i) for i, size in enumerate(sizes)]


CASES: Final = (
    _of_attention("13 nodes, mask, bias", 1, 13, 26, True),
    _of_attention("39 tokens", 13, 39, 26, False),
    _of_attention(f"{MOST_WHOLE + 1} nodes, mask, bias", 1, MOST_WHOLE + 1, 26, True),
    _of_attention("169 edges", 1, 169, 26, False),
    _of_attention("169 edges, low rank", 1, 169, 4, False),
    *map(_of_block, _BLOCKS),
    Case("aspects", "78 pairs", ("fp32",), _aspects_leaves, _aspects, 78, "aspects"),
    Case("gru_bank", "13 recurrences", ("fp32",), _gru_leaves, _gru(recompute=True), 32, "gru_bank"),
    Case("gru_bank", "13 recurrences, gates kept", ("fp32",), _gru_leaves, _gru(recompute=False), 32, None),
)
"""All cases."""


class Implementations(TorchDispatchMode):
    """Mode in which operators of `pgat` run their implementation on tensors without data, not their fake."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace != "pgat":
            return function(*args, **(kwargs or {}))
        with self:
            return OPDEFS[function._schema.name]._init_fn(*args, **(kwargs or {}))


def gradient(y: Tensor) -> Tensor:
    """Return random numbers in the shape and dtype of a result."""
    return numbers(tuple(y.shape), y.dtype, y.device, salt=100)


def results(case: Case, leaves: list[Tensor], kernels: bool, g: Tensor | None = None) -> list[Tensor]:
    """Return result and gradients; `g` is the gradient of the result, random numbers by default."""
    inputs = [x.detach().requires_grad_() for x in leaves]
    y = case.run(inputs, kernels)
    g = gradient(y) if g is None else g
    return [y.detach(), *torch.autograd.grad(y, inputs, g, materialize_grads=True)]
