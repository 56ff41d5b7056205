"""Tests that freed blocks are reused, and that settings of the user and other C libraries are left unchanged."""

import ctypes
import os
import subprocess
import sys

import pytest

from pgat_kernels.malloc import keep_freed_memory

CODE = """
import resource, sys
import torch
from pgat_kernels.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    tensors = [torch.ones(2_000_000) for _ in range(4)]
for _ in range(10):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of Linux")
def test_freed_buffers_are_reused_without_page_faults() -> None:
    def faults(word: str) -> int:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
        process = subprocess.run(
            [sys.executable, "-c", CODE, word], env=clean, capture_output=True, text=True, check=True
        )
        return int(process.stdout)

    # 320 MB are 78,125 pages of 4 KiB.
    assert faults("keep") < 20_000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_setting_of_the_user_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert keep_freed_memory.__wrapped__() is False


def test_other_c_library_is_left_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(name)

    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for library in (absent, lambda name: object()):
        monkeypatch.setattr(ctypes, "CDLL", library)
        assert keep_freed_memory.__wrapped__() is False
