"""Files of a checkpoint: read once, verified, then parsed from the bytes that were read; checks of the disk."""

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import Tensor

from pgat_fast.errors import CheckpointError
from pgat_fast.training.manifest import (
    LARGEST_FILE,
    LARGEST_MANIFEST,
    MANIFEST,
    TORCH_TRAINING,
    TRAINING,
    WEIGHTS,
    Manifest,
    decode_manifest,
    sha256,
)
from pgat_fast.training.serialization import load_torch_state, parse_state, parse_tensors

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SPARE: Final = 2**16
"""Bytes to leave free, since folders and names take space too."""


def check_space(root: Path, needed: int) -> None:
    """Raise OSError if the disk of `root` has fewer than `needed + _SPARE` bytes free."""
    free = shutil.disk_usage(root).free
    if needed + _SPARE > free:
        raise OSError(errno.ENOSPC, f"{needed + _SPARE:,} bytes are needed, {free:,} are free", str(root))


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint in the folder `path`. Raise CheckpointError, which names the file."""
    if path.is_symlink() or path.is_file():
        raise CheckpointError(f"{path}: not a folder, as a checkpoint is, but a file or link")
    return _parsed(path / MANIFEST, decode_manifest, read_file(path / MANIFEST, LARGEST_MANIFEST))


def read_weights(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`. Raise CheckpointError unless the file matches `manifest`."""
    return _parsed(path / WEIGHTS, parse_tensors, _read_verified(path, WEIGHTS, manifest))[0]


def read_training(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the training state. Raise CheckpointError unless its file matches `manifest`."""
    if TORCH_TRAINING in manifest.files:
        return _parsed(path / TORCH_TRAINING, load_torch_state, _read_verified(path, TORCH_TRAINING, manifest))
    return _parsed(path / TRAINING, parse_state, _read_verified(path, TRAINING, manifest))


def _parsed(path: Path, parse: Callable[[bytes], T], raw: bytes) -> T:
    try:
        return parse(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_verified(path: Path, name: str, manifest: Manifest) -> bytes:
    expected = manifest.files[name]
    raw = read_file(path / name, LARGEST_FILE, expected.bytes)
    if sha256(raw) != expected.sha256:
        raise CheckpointError(f"{path / name}: damaged: its sha256 differs from that in {MANIFEST}")
    return raw


def read_file(path: Path, limit: int, size: int | None = None, follow_links: bool = False) -> bytes:
    """Return the content of a regular file of `size` bytes, or of at most `limit`; raise CheckpointError otherwise.

    The size is checked before anything is read.
    """
    # O_NONBLOCK: a pipe in place of the file must not block.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            if status.st_size > limit:
                raise CheckpointError(
                    f"{path}: {status.st_size:,} bytes, more than the {limit:,} that are read: is it the right file?"
                )
            if size is not None and status.st_size != size:
                raise CheckpointError(f"{path}: damaged: {status.st_size:,} bytes, but {size:,} in {MANIFEST}")
            return file.read(status.st_size)
    except OSError as error:
        reason = "a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error


def remove_or_warn(path: Path) -> bool:
    """Remove the file, link or folder at `path`; return whether it existed and was removed. Warn on failure."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", path, error.strerror or error)
        return False
    return True
