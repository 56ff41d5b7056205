"""Faster compilation of whole models for tests: one C++ file for all kernels of a graph.

Inductor writes a file for each of a hundred kernels. g++ takes a second a file to read torch's headers, and a tenth of
that to compile the kernel. Kernels and compiler flags are inductor's.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from torch import Tensor
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache


class Library(CppCodeCache):
    """Shared library, compiled with the flags and the precompiled header of inductor's kernels."""

    cpp_compile_command_flags = CppPythonBindingsCodeCache.cpp_compile_command_flags
    _get_uncompiled_header = CppPythonBindingsCodeCache._get_uncompiled_header


class Kernels:
    """Kernels of a graph, compiled at the first call of one, when all are known."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.library = cache(lambda: Library.load("\n".join(self.sources)))

    def add(self, types: Sequence[str], source: str) -> Callable[..., None]:
        """Add a kernel with the given C++ types of its arguments; return the function that calls it."""
        assert all(name.endswith("*") for name in types), types
        kernel = f"kernel_{len(self.sources)}"
        self.sources.append(source.replace("kernel(", f"{kernel}(", 1))

        def call(*tensors: Tensor) -> None:
            getattr(self.library(), kernel)(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))

        return call


@contextmanager
def one_library_a_graph() -> Iterator[None]:
    """Compile graphs within the context with one C++ file each."""

    @cache
    def kernels_of(graph: AsyncCompile) -> Kernels:
        return Kernels()

    def cpp_pybinding(graph: AsyncCompile, types: Sequence[str], source: str) -> Any:
        return kernels_of(graph).add(types, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncCompile, "cpp_pybinding", cpp_pybinding)
        yield
