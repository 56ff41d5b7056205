"""Cache of the results of operators on fake tensors.

Torch's `FakeTensorMode` takes about half a millisecond an operator, and a step of the production model calls ten
thousand: recurrences and chunks repeat the same operators on tensors of the same shapes. The metadata of a result
follow from those of the arguments, so each result is computed once and later ones are created from the cached metadata.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_UNKNOWN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)
"""Tags of operators whose result depends on data, or which change the metadata of an argument."""


class _Same(NamedTuple):
    """A result that is one of the arguments, as of an in-place operator."""

    argument: int


class _View(NamedTuple):
    """A result that shares the storage of an argument."""

    argument: int
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    """Offset from the start of the argument, in elements of the result."""
    dtype: torch.dtype
    device: torch.device


class _Fresh(NamedTuple):
    """A result with its own storage, without unused bytes."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class UncacheableError(Exception):
    """Arguments or results that only `FakeTensorMode` can handle."""


_Recipe = _Same | _View | _Fresh | None

_cacheable: dict[Any, bool] = {}
_recipes: dict[Any, tuple[type, tuple[_Recipe, ...]]] = {}
"""Operator and arguments -> type of the result (Tensor or a sequence), and recipes for its tensors."""


class FakeResultCache(TorchDispatchMode):
    """Mode that answers repeated calls in place of a `FakeTensorMode`; enter it inside of that mode.

    Two calls are equal if the operator, all plain arguments with their types, and shape, strides, dtype and device of
    all tensors are equal. Storage offsets are ignored, since no operator of aten except `as_strided` depends on them.
    Calls whose results depend on data, and calls with real data as arguments, go to the `FakeTensorMode`.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._mode = mode

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's wrapper takes a tenth of a call; nothing is compiled here

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
        recipe = _recipes.get(key)
        if recipe is not None:
            container, parts = recipe
            results = [self._make(part, tensors) for part in parts]
            return container(results) if container in (list, tuple) else results[0]
        result = func(*args, **kwargs)
        try:
            # Do not cache an operator that has changed the metadata of an argument.
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
    """Create tensors without data within the context, and cache the results of operators on them."""
    mode = FakeTensorMode()
    mode.cache_enabled = False  # computing its keys takes half of a call, and almost no call would hit
    with mode, FakeResultCache(mode):
        yield


def describe(arguments: Iterable[Any], tensors: list[FakeTensor]) -> list[Any]:
    """Return a cache key for `arguments`, and append the tensors among them to `tensors`.

    Raises:
        UncacheableError: a tensor has data, a known value or complex numbers, or an argument is not a plain value.
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
            parts += (type(x), x)  # 1 == 1.0, but result types differ
        else:
            raise UncacheableError
    return parts


def _is_cacheable(func: Any) -> bool:
    """Return whether the metadata of the results of `func` follow from those of its arguments."""
    if getattr(func, "namespace", None) != "aten" or "as_strided" in func.name() or "lift" in func.name():
        return False
    return not any(tag in func.tags for tag in _UNKNOWN)


def _recipe_of(result: Any, tensors: Sequence[FakeTensor]) -> tuple[type, tuple[_Recipe, ...]]:
    if isinstance(result, list | tuple):
        parts = tuple(_part_of(x, tensors) for x in result)
        fresh = [x.untyped_storage()._cdata for x, part in zip(result, parts, strict=True) if isinstance(part, _Fresh)]
        if len(set(fresh)) < len(fresh):
            raise UncacheableError  # results share a storage
        return list if isinstance(result, list) else tuple, parts
    return Tensor, (_part_of(result, tensors),)


def _part_of(result: Any, tensors: Sequence[FakeTensor]) -> _Recipe:
    if result is None:
        return None
    matches = [number for number, tensor in enumerate(tensors) if result is tensor]
    if matches:
        return _Same(_only(matches))
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
        raise UncacheableError  # the storage is larger than the tensor
    return _Fresh(shape, strides, result.dtype, result.fake_device)


def _only(numbers: list[int]) -> int:
    """Return the only number; raise UncacheableError if several arguments with one storage could be the base."""
    if len(numbers) > 1:
        raise UncacheableError
    return numbers[0]


def _bytes_of(x: Tensor) -> int:
    """Return the bytes of the smallest storage that holds `x`."""
    if x.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.element_size()
