"""Results of operators on tensors without data, found once for equal arguments.

Torch's `FakeTensorMode` takes about half a millisecond an operator, and a step of the production model calls ten
thousand: recurrences and chunks call the same ones again and again on tensors of the same shapes. What a result looks
like follows from what its arguments look like, so it is asked for once; afterwards a tensor like it is made.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_VIEWS = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.dim,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
        aten.view.dtype,
    }
)
"""Views that the C++ kernels of the meta device make in less time than it takes to look for an earlier one."""

_FILLS = frozenset(
    {
        aten.fill_.Scalar,
        aten.normal_.default,
        aten.uniform_.default,
        aten.zero_.default,
    }
)
"""They write numbers into a tensor whatever it looks like, and return it: all that a model is initialised with."""

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_UNKNOWN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)
"""Tags of operators whose result depends on data, or which change what an argument looks like."""


class _Same(NamedTuple):
    """A result that is an argument: that of an in-place operator."""

    argument: int


class _View(NamedTuple):
    """A result that shares the storage of an argument."""

    argument: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    """In elements of its own type, from where the argument begins."""
    dtype: torch.dtype
    device: torch.device


class _Fresh(NamedTuple):
    """A result with a storage of its own that it fills."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class UncacheableError(Exception):
    """Arguments or results that only `FakeTensorMode` knows how to handle."""


_Recipe = _Same | _View | _Fresh | None

_cacheable: dict[Any, bool] = {}
_recipes: dict[Any, tuple[type, tuple[_Recipe, ...]]] = {}
"""Operator and arguments -> type of its result (Tensor or a sequence), and how to make the tensors of it."""


class FakeResultCache(TorchDispatchMode):
    """Takes the place of a `FakeTensorMode` for calls that are like earlier ones; enter it inside of that mode.

    A call is like another if the operator, all plain arguments with their types, and shape, strides, dtype and
    device of all tensors are equal. Where tensors begin in their storages is left out, since no operator of aten but
    `as_strided` asks for it. Calls with results that depend on data, or arguments with data, go to the
    `FakeTensorMode`.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # What torch wraps a mode in otherwise takes a tenth of a call; nothing is compiled here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].device
        kwargs = kwargs or {}
        if func not in _cacheable:
            _cacheable[func] = _is_cacheable(func)
        if not _cacheable[func]:
            return func(*args, **kwargs)
        tensors: list[FakeTensor] = []
        try:
            key = (func, *describe(args, tensors), *kwargs, *describe(kwargs.values(), tensors))
        except UncacheableError:
            return func(*args, **kwargs)
        if any(tensor.fake_mode is not self._mode for tensor in tensors):
            return func(*args, **kwargs)
        if func in _FILLS and tensors:
            return args[0]
        if func in _VIEWS:
            with in_kernel_invocation_manager(self._mode):
                view = func(*args, **kwargs)
            return FakeTensor(self._mode, view, tensors[0].fake_device)
        recipe = _recipes.get(key)
        if recipe is not None:
            container, parts = recipe
            results = [self._make(part, tensors) for part in parts]
            return container(results) if container in (list, tuple) else results[0]
        result = func(*args, **kwargs)
        try:
            # Unless it has changed what an argument looks like.
            if key == (func, *describe(args, []), *kwargs, *describe(kwargs.values(), [])):
                _recipes[key] = _recipe_of(result, tensors)
        except UncacheableError:
            pass
        return result

    def _make(self, recipe: _Recipe, tensors: Sequence[FakeTensor]) -> Tensor | None:
        if recipe is None:
            return None
        if isinstance(recipe, _Same):
            return tensors[recipe.argument]
        with in_kernel_invocation_manager(self._mode):
            if isinstance(recipe, _Fresh):
                meta = torch.empty_strided(recipe.shape, recipe.strides, dtype=recipe.dtype, device="meta")
            else:
                base = tensors[recipe.argument]
                meta = torch.empty(0, dtype=recipe.dtype, device="meta")
                offset = base.storage_offset() + recipe.offset
                meta.set_(base.untyped_storage(), offset, recipe.shape, recipe.strides)
        return FakeTensor(self._mode, meta, recipe.device)


@contextmanager
def without_data() -> Iterator[None]:
    """Within it tensors that are made have no data, and results of operators are found once for equal arguments."""
    mode = FakeTensorMode()
    mode.cache_enabled = False  # making its keys takes half of a call, and hardly a call reaches it twice
    with mode, FakeResultCache(mode):
        yield


def describe(arguments: Iterable[Any], tensors: list[FakeTensor]) -> list[Any]:
    """Return what decides whether `arguments` equal others, and append the tensors among them to `tensors`.

    Raises:
        UncacheableError: a tensor has data, a known value or complex numbers, or an argument is no plain value.
    """
    parts: list[Any] = []
    for x in arguments:
        if isinstance(x, FakeTensor):
            if x.constant is not None or x.layout != torch.strided or x.is_complex():
                raise UncacheableError
            tensors.append(x)
            parts += (x.shape, x.stride(), x.dtype, x.fake_device)
        elif isinstance(x, list | tuple):
            parts.append((type(x), *describe(x, tensors)))
        elif type(x) in _PLAIN:
            parts += (type(x), x)  # 1 equals 1.0, but gives other types
        else:
            raise UncacheableError
    return parts


def _is_cacheable(func: Any) -> bool:
    """Whether the results of `func` follow from what its arguments look like."""
    if getattr(func, "namespace", None) != "aten" or "as_strided" in func.name() or "lift" in func.name():
        return False
    return not any(tag in func.tags for tag in _UNKNOWN)


def _recipe_of(result: Any, tensors: Sequence[FakeTensor]) -> tuple[type, tuple[_Recipe, ...]]:
    if isinstance(result, list | tuple):
        parts = tuple(_part_of(x, tensors) for x in result)
        fresh = [x.untyped_storage()._cdata for x, part in zip(result, parts, strict=True) if isinstance(part, _Fresh)]
        if len(set(fresh)) < len(fresh):
            raise UncacheableError  # they share a storage
        return list if isinstance(result, list) else tuple, parts
    return Tensor, (_part_of(result, tensors),)


def _part_of(result: Any, tensors: Sequence[FakeTensor]) -> _Recipe:
    if result is None:
        return None
    same = [number for number, tensor in enumerate(tensors) if result is tensor]
    if same:
        return _Same(_only(same))
    if not isinstance(result, FakeTensor) or result.constant is not None:
        raise UncacheableError
    if result.requires_grad or result.is_conj() or result.is_neg() or result.layout != torch.strided:
        raise UncacheableError
    shape, strides = result.shape, result.stride()
    storage = result.untyped_storage()
    bases = [n for n, tensor in enumerate(tensors) if storage._cdata == tensor.untyped_storage()._cdata]
    if bases:
        base = _only(bases)
        if result.dtype.itemsize != tensors[base].dtype.itemsize:
            raise UncacheableError
        offset = int(result.storage_offset()) - int(tensors[base].storage_offset())
        return _View(base, shape, strides, offset, result.dtype, result.fake_device)
    if result.storage_offset() != 0 or storage.nbytes() != _bytes_of(result):
        raise UncacheableError  # it has more storage than it fills
    return _Fresh(shape, strides, result.dtype, result.fake_device)


def _only(numbers: list[int]) -> int:
    """Return the argument that a result is or belongs to. With more than one of a storage it is not known which."""
    if len(numbers) > 1:
        raise UncacheableError
    return numbers[0]


def _bytes_of(x: Tensor) -> int:
    """Bytes of the smallest storage that holds `x`."""
    if x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()
