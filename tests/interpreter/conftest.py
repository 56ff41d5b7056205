"""Fixtures of the tests that run kernels in triton's interpreter.

These tests run in a separate process with `TRITON_INTERPRET=1` (`make test`), and are not collected elsewhere. The
interpreter of triton 3.6 to 3.8 multiplies the bits of bfloat16 numbers as integers. A fixture corrects it, so that
its errors cannot hide ours.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct the interpreter's conversions from and to bfloat16, rounding to nearest, and its bfloat16 products."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def is_bfloat16(handle: Any) -> bool:
        return bool(handle.dtype.scalar == tl.bfloat16)

    def widened(handle: Any) -> Any:
        if not is_bfloat16(handle):
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrowed(values: np.ndarray) -> Any:
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return TensorHandle(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)

    convert, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast(self: Any, source: Any, to: Any, *rounding: Any) -> Any:
        if to.scalar == tl.bfloat16:
            return narrowed(widened(source).data)
        return convert(self, widened(source), to)

    def binary(self: Any, left: Any, right: Any, function: Any) -> Any:
        assert not is_bfloat16(left), "kernels compute nothing in bfloat16 but products"
        return operation(self, left, right, function)

    operation = InterpreterBuilder.binary_op
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)
    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", cast)
    monkeypatch.setattr(InterpreterBuilder, "binary_op", binary)
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    )


@pytest.fixture(autouse=True)
def whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert one-element arrays to integers in a way that numpy 2.4 accepts; it refuses that of triton 3.6."""
    from triton.runtime import interpreter

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    original = interpreter._patch_lang_tensor
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


@pytest.fixture(autouse=True)
def fast_erf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the error function of the interpreter, one Python call per element, by torch's."""
    import torch
    from triton.runtime import interpreter

    monkeypatch.setattr(
        interpreter, "np_erf_fp32", lambda x: torch.erf(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    )


@pytest.fixture
def reversed_grid() -> Iterator[Any]:
    """Yield a function that makes programs run in reverse order from then on."""
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.set_grid_idx

    def turn() -> None:
        def backwards(*place: int) -> None:
            original(*(size - 1 - at for size, at in zip(interpreter_builder.grid_dim, place, strict=True)))

        interpreter_builder.set_grid_idx = backwards

    yield turn
    interpreter_builder.set_grid_idx = original


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new tensors with NaN, which reveals elements that a kernel does not write."""
    import torch

    def filled(make: Any) -> Any:
        def call(*shape: object, **how: object) -> Any:
            x = make(*shape, **how)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return call

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use few large tiles, since the interpreter's time depends on their number.

    Tests of single kernels use the tiles of the table.
    """

    from pgat_kernels.triton import launch
    from pgat_kernels.tuning_table import Configuration

    def large(kernel: str, *case: object) -> Any:
        if kernel.startswith("aspects"):
            return Configuration(block=128, warps=4, stages=1, columns=64)
        return Configuration(block=256 if "attention" in kernel else 2048, warps=4, stages=1, columns=256)

    monkeypatch.setattr(launch, "configuration", large)
    monkeypatch.setattr(launch, "CHUNK", 256)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Make `bench.parity` compare models that are small enough for the interpreter; return their settings."""
    from bench import parity

    settings = (
        "model.seq_len=2", "model.label_len=1", "model.pred_len=1", "model.d_model=13", "model.n_heads=1",
        "model.fusion_layers=1", "run.device=cpu",
    )  # fmt: skip
    monkeypatch.setattr(parity, "SETTINGS", settings)
    parity.require_parity.cache_clear()
    yield settings
    parity.require_parity.cache_clear()
