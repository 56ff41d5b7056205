"""Safe saving and loading of plain containers and tensors in the format of `torch.save`.

`torch.load(weights_only=True)` runs no foreign code, but a few bytes can make it fill the memory: a compressed
archive, a huge `bytearray`. So a file is inspected before it is loaded.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from types import NoneType
from typing import IO, Any, Final

import torch
from torch import Tensor

from pgat_fast.errors import CheckpointError

_DEEPEST: Final = 64
_LONGEST_INT: Final = 2000
"""Bits. `weights_only` reads integers that are pickled in at most 255 bytes."""

_ALLOWED: Final = re.compile(
    r"collections (?:OrderedDict|Counter)|__builtin__ set|builtins set"
    r"|torch\._utils (?:_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (?:Size|device|\w+Storage|u?int\d+|b?float\d+|bool)|torch\.storage \w+Storage",
    re.ASCII,
)
"""Globals, as `module name`, that build containers and tensors from the content of the file."""

_PICKLES_OF_OLD_FILES: Final = 5
"""Before torch 1.6: magic number, protocol, machine, the object, keys of its storages. Raw storages follow."""


def dump_plain(tree: Any) -> bytes:
    """Return the bytes of `torch.save` for `tree`, a result of `plain_tree`."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def load_plain(raw: bytes) -> Any:
    """Load the bytes of a `torch.save` file, with tensors on the CPU.

    Raises CheckpointError, without the name of the file, if it is damaged or asks for more than tensors and plain
    containers.
    """
    _look_through(raw)
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # its type depends on the position of the fault in the file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"damaged, or not written by torch.save: {reason[0][:200]}") from error


def plain_tree(value: Any, key: str) -> Any:
    """Return a copy of nested dicts, lists and tuples in which no tensor refers to more memory than its own.

    Raises CheckpointError, which names the key, for anything other than these containers, tensors on the CPU, numbers,
    text and None, since `weights_only` would not load it.
    """
    return _plain(value, key, 0, {})


def _plain(value: Any, key: str, depth: int, seen: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in (str, float, bool, NoneType):
        return value
    if kind is int:
        if value.bit_length() > _LONGEST_INT:
            raise CheckpointError(f"{key} is an integer of {value.bit_length()} bits: at most {_LONGEST_INT} are read")
        return value
    if id(value) in seen:  # keep shared parts shared: nested copies would multiply exponentially
        return seen[id(value)]
    if depth > _DEEPEST:
        raise CheckpointError(f"{key[:80]}...: nested too deeply, more than {_DEEPEST} levels")
    result: Any
    if kind is Tensor:
        result = _compact(value, key)
    elif kind in (dict, OrderedDict):
        for name in value:
            if type(name) not in (str, int):
                raise CheckpointError(f"{key}: the key {str(name)[:80]!r} is neither text nor an integer")
        result = kind((name, _plain(inner, f"{key}.{name}", depth + 1, seen)) for name, inner in value.items())
    elif kind in (list, tuple):
        result = kind(_plain(inner, f"{key}[{index}]", depth + 1, seen) for index, inner in enumerate(value))
    else:
        raise CheckpointError(
            f"{key} is a {kind.__module__}.{kind.__qualname__}: a checkpoint holds tensors, dicts, lists, tuples, "
            "numbers, text and None; convert it"
        )
    seen[id(value)] = result
    return result


def _compact(tensor: Tensor, key: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{key} is a {tensor.layout} tensor on {tensor.device}: store a dense one on the CPU")
    size, storage_size = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > storage_size:
        raise CheckpointError(
            f"{key} shows {size:,} bytes out of {storage_size:,}, as `expand` makes it: store tensor.contiguous()"
        )
    return tensor.detach() if size == storage_size else tensor.detach().clone()


def _look_through(raw: bytes) -> None:
    """Raise CheckpointError if loading `raw` could take more memory than its size or call other functions."""
    try:
        if raw[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                _look_at_pickle(io.BytesIO(archive.read(_pickle_of(archive, len(raw)))))
        else:
            file = io.BytesIO(raw)
            for _ in range(_PICKLES_OF_OLD_FILES):
                _look_at_pickle(file)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"damaged, or not written by torch.save: {str(error)[:200]}") from error


def _pickle_of(archive: zipfile.ZipFile, size: int) -> str:
    """Return the name of the only pickle in `archive`. Raise CheckpointError if the archive is compressed."""
    entries = archive.infolist()
    compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if compressed or sum(entry.file_size for entry in entries) > size:
        raise CheckpointError("a compressed archive, which torch.save does not write: not loaded")
    names = [entry.filename for entry in entries]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError("a TorchScript archive, which holds code: not loaded; save the state dict of the model")
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise CheckpointError("an archive that torch.save did not write: not loaded")
    return pickles[0]


def _look_at_pickle(file: IO[bytes]) -> None:
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError(f"the instruction {code.name}, which torch.save does not write")
        if code.name == "GLOBAL" and not _ALLOWED.fullmatch(str(argument)):
            raise CheckpointError(
                f"asks for {str(argument).replace(' ', '.')[:100]}, which is neither a tensor nor a plain container: "
                "not loaded"
            )
