"""Files of a checkpoint: written and synced, read once, verified, then parsed from the bytes that were read."""

import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from pgat_fast.errors import CheckpointError
from pgat_fast.training.manifest import (
    LARGEST_FILE,
    LARGEST_MANIFEST,
    MANIFEST,
    TRAINING,
    WEIGHTS,
    Manifest,
    decode_manifest,
    strict_json,
)
from pgat_fast.training.safe_load import load_plain, plain_tree
from pgat_fast.utils.io import sync_directory

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LARGEST_HEADER: Final = 16 * 2**20
_SPARE: Final = 2**16
"""Bytes to leave free, since folders and names take space too."""


def dump_weights(weights: dict[str, Tensor]) -> bytes:
    """Return `weights` as safetensors. The format sets their order and forbids shared memory, which is copied."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        if type(name) is not str or not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"weights.{name} is no dense tensor with a name, but a {type(tensor).__name__}")
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    # safetensors copies each tensor, then all, and panics in Rust if memory runs out: raise MemoryError first.
    bytes(2 * sum(tensor.nbytes for tensor in owned.values()))
    return save(owned, {"format": "pt"})  # metadata by which other tools recognise PyTorch tensors


def make_root(root: Path) -> None:
    """Make the folder `root` if it is missing, and sync its parent so that it survives a power cut."""
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        sync_directory(root.parent)


def check_space(root: Path, needed: int) -> None:
    """Raise OSError if the disk of `root` has fewer than `needed + _SPARE` bytes free."""
    free = shutil.disk_usage(root).free
    if needed + _SPARE > free:
        raise OSError(errno.ENOSPC, f"{needed + _SPARE:,} bytes are needed, {free:,} are free", str(root))


def write_file(path: Path, content: bytes) -> None:
    """Write and sync a file that must not exist. Every error names the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint in the folder `path`. Raise CheckpointError, which names the file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: not a folder of its own, as a checkpoint is")
    raw = read_file(path / MANIFEST, LARGEST_MANIFEST)
    return _parsed(path / MANIFEST, decode_manifest, raw)


def read_weights(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`. Raise CheckpointError unless the file matches `manifest`."""
    return _parsed(path / WEIGHTS, parse_weights, _read_verified(path, WEIGHTS, manifest))


def read_training(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the content of `training.pt`. Raise CheckpointError unless the file matches `manifest`."""

    def parse(raw: bytes) -> dict[str, Any]:
        content = plain_tree(load_plain(raw), "training")
        if not isinstance(content, dict):
            raise CheckpointError(f"holds a {type(content).__name__}, not a dict")
        return content

    return _parsed(path / TRAINING, parse, _read_verified(path, TRAINING, manifest))


def _parsed(path: Path, parse: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return parse(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_weights(raw: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raise CheckpointError, without the name of the file, if invalid."""
    header = int.from_bytes(raw[:8], "little")
    if header > min(_LARGEST_HEADER, len(raw)):
        raise CheckpointError(f"no safetensors file: its header claims {header:,} bytes")
    try:
        strict_json(raw[8 : 8 + header])  # the parser accepts a duplicate name and keeps the last tensor
        return load(raw)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # the parser's own errors, and errors of torch for types and shapes
        raise CheckpointError(f"damaged, or no safetensors file: {str(error)[:200]}") from error


def _read_verified(path: Path, name: str, manifest: Manifest) -> bytes:
    expected = manifest.files[name]
    raw = read_file(path / name, LARGEST_FILE, expected.bytes)
    if hashlib.sha256(raw).hexdigest() != expected.sha256:
        raise CheckpointError(f"{path / name}: damaged: its sha256 is not the one that {MANIFEST} has for it")
    return raw


def read_file(path: Path, limit: int, size: int | None = None, follow_links: bool = False) -> bytes:
    """Return the content of a plain file of `size` bytes, or of at most `limit`; raise CheckpointError otherwise."""
    # O_NONBLOCK: a pipe in place of the file must not block.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a plain file")
            if status.st_size > limit:
                raise CheckpointError(f"{path}: {status.st_size:,} bytes, more than the {limit:,} that are read")
            if size is not None and status.st_size != size:
                raise CheckpointError(f"{path}: damaged: {status.st_size:,} bytes, {MANIFEST} says {size:,}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = "a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error


def exists(path: Path) -> bool:
    """Return whether `path` exists, even as a broken link. Raise OSError if that cannot be determined."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def remove_or_warn(path: Path) -> bool:
    """Remove the file, link or folder at `path`; return whether it existed and was removed. Warn on failure."""
    try:
        if not exists(path):
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", path, error.strerror or error)
        return False
    return True
