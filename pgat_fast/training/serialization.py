"""Tensors and training states as bytes: safetensors, with JSON in its header for everything that is not a tensor.

Files of `torch.save` are only read: the weights of other programs, and the training states of earlier versions.
"""

import io
import itertools
import json
import math
import pickletools
import re
import zipfile
from types import NoneType
from typing import Any, Final

import torch
from safetensors.torch import load, save
from torch import Tensor

from pgat_fast.errors import CheckpointError, first_line
from pgat_fast.training.manifest import strict_json

_LARGEST_HEADER: Final = 16 * 2**20
_DEEPEST: Final = 64
_MOST_CONTAINERS: Final = 100_000
_STATE: Final = "state"
"""Key of the training state, as JSON, in the metadata of a safetensors file."""

_ALLOWED: Final = re.compile(
    r"collections (?:OrderedDict|Counter)|(?:__builtin__|builtins) set"
    r"|torch\._utils (?:_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (?:Size|device|\w+Storage|u?int\d+|b?float\d+|bool)",
    re.ASCII,
)
"""Globals of a pickle, as `module name`, that build containers and tensors from the content of the file."""

_PICKLES_OF_OLD_FILES: Final = 5
"""Before torch 1.6: magic number, protocol, machine, the object, keys of its storages. Raw storages follow."""


# --- safetensors ------------------------------------------------------------------------------------------------------


def dump_tensors(tensors: dict[str, Tensor], key: str = "weights", metadata: dict[str, str] | None = None) -> bytes:
    """Return `tensors` as safetensors. The format sets their order and forbids shared memory, which is copied.

    Raises CheckpointError, which names the tensor below `key`, for anything that is not a dense tensor.
    """
    dense: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        check_dense(tensor, f"{key}.{name}")
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        dense[name] = tensor.clone() if address in addresses else tensor
        addresses.add(address)
    # safetensors copies each tensor, then all, and panics in Rust if memory runs out: raise MemoryError first.
    bytes(2 * sum(tensor.nbytes for tensor in dense.values()))
    # "format" is the metadata by which other tools recognise PyTorch tensors. A second key would have a random place.
    return save(dense, metadata or {"format": "pt"})


def check_dense(tensor: Any, key: str) -> None:
    """Raise CheckpointError, which names `key`, unless `tensor` is a dense tensor with memory for each number."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{key} is a {_kind(tensor)}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise CheckpointError(
            f"{key} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}, not a dense one"
        )
    size, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > stored:
        raise CheckpointError(
            f"{key} has {stored:,} bytes in memory for a shape of {size:,}, as `expand` makes it: "
            "save tensor.contiguous()"
        )


def parse_tensors(raw: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises CheckpointError, without the name of the file, if it is invalid.
    """
    length = int.from_bytes(raw[:8], "little")
    if length > min(_LARGEST_HEADER, len(raw)):
        raise CheckpointError(f"not a safetensors file: its header claims {length:,} bytes")
    try:
        header = strict_json(raw[8 : 8 + length])  # the parser accepts a duplicate name and keeps the last tensor
        return load(raw), header.get("__metadata__", {})
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # the parser's own errors, and errors of torch for types and shapes
        raise CheckpointError(f"damaged, or not a safetensors file: {str(error)[:200]}") from error


# --- training states --------------------------------------------------------------------------------------------------


def dump_state(state: dict[str, Any]) -> bytes:
    """Return `state` as a safetensors file: its tensors, and everything else as JSON in the header.

    `parse_state` returns the same types and bits. `state` may hold tensors, nested dicts (with text and integers as
    keys), lists, tuples, numbers, text and None. In the JSON, an object with one of these keys stands for a value that
    JSON lacks: `$tensor` (name of a tensor), `$tuple`, `$dict` (pairs of keys and values), `$float` (`nan`, `inf` or
    `-inf`; a NaN loses its sign and payload).

    Raises CheckpointError, which names the key, for any other type.
    """
    tree, tensors = _encode(state)
    raw = dump_tensors(tensors, "training", {_STATE: json.dumps(tree)})
    if int.from_bytes(raw[:8], "little") > _LARGEST_HEADER:
        raise CheckpointError(f"training: more than the {_LARGEST_HEADER:,} bytes that are read, without its tensors")
    return raw


def _encode(state: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return `state` as JSON values, and the tensors that these name."""
    tensors: dict[str, Tensor] = {}
    containers = itertools.count(1)

    def encode(value: Any, key: str, depth: int) -> Any:
        kind = type(value)
        if kind in (str, int, bool, NoneType):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, Tensor):
            if key in tensors:
                raise CheckpointError(f"training.{key}: two tensors have this name; rename a key")
            tensors[key] = value
            return {"$tensor": key}
        if depth > _DEEPEST or next(containers) > _MOST_CONTAINERS:
            raise CheckpointError(f"training.{key[:80]}: nested too deeply, or too many dicts, lists and tuples")
        prefix = f"{key}." if key else ""
        if kind is dict:
            pairs = [(name, encode(inner, f"{prefix}{name}", depth + 1)) for name, inner in value.items()]
            if all(type(name) is str and not name.startswith("$") for name in value):
                return dict(pairs)
            for name in value:
                if type(name) not in (str, int):
                    raise CheckpointError(f"training.{key}: the key {str(name)[:80]!r} is neither text nor an integer")
            return {"$dict": pairs}
        if kind in (list, tuple):
            items = [encode(inner, f"{prefix}{index}", depth + 1) for index, inner in enumerate(value)]
            return items if kind is list else {"$tuple": items}
        raise CheckpointError(
            f"training.{key} is a {_kind(value)}: a checkpoint stores tensors, dicts, lists, tuples, numbers, text and "
            "None; convert it"
        )

    return encode(state, "", 0), tensors


def parse_state(raw: bytes) -> dict[str, Any]:
    """Return the training state that `dump_state` wrote. Raise CheckpointError, without the name of the file."""
    tensors, metadata = parse_tensors(raw)

    def decode(content: dict[str, Any]) -> Any:
        if not any(name.startswith("$") for name in content):
            return content
        ((tag, value),) = content.items()
        if tag == "$tensor":
            return tensors.pop(value)
        return {"$tuple": tuple, "$dict": dict, "$float": float}[tag](value)

    try:
        state = strict_json(metadata[_STATE].encode(), decode)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"not a training state: {type(error).__name__}: {str(error)[:200]}") from error
    if tensors:
        raise CheckpointError(f"not a training state: the tensor {next(iter(tensors))[:80]} is not used")
    return _checked(state)


def _checked(state: Any) -> dict[str, Any]:
    """Return `state`, which has been read. Raise CheckpointError if `dump_state` would not accept it."""
    if not isinstance(state, dict):
        raise CheckpointError(f"not a training state, but a {_kind(state)}")
    for key, tensor in _encode(state)[1].items():
        check_dense(tensor, f"training.{key}")
    return state


# --- files of torch.save ----------------------------------------------------------------------------------------------


def load_torch_state(raw: bytes) -> dict[str, Any]:
    """Return the training state in a file of `torch.save`. Raise CheckpointError, without the name of the file."""
    return _checked(load_torch(raw))


def load_torch(raw: bytes) -> Any:
    """Return the content of a file of `torch.save`, with tensors on the CPU.

    `weights_only` runs no foreign code, but a few bytes can make it fill the memory: a compressed archive, a call of
    `bytearray(10**11)`. So both are refused before: only what builds containers and tensors is called.

    Raises CheckpointError, without the name of the file, if it is damaged or holds other objects.
    """
    try:
        if raw[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > len(raw):
                    raise CheckpointError("a compressed archive, which torch.save does not write; save it again")
                for entry in archive.infolist():
                    if entry.filename.endswith("data.pkl"):
                        _check_pickle(io.BytesIO(archive.read(entry)))
        else:
            file = io.BytesIO(raw)
            for _ in range(_PICKLES_OF_OLD_FILES):
                _check_pickle(file)
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # its type depends on the position of the fault in the file
        raise CheckpointError(f"damaged, or not a file of torch.save: {first_line(error)[:200]}") from error


def _check_pickle(file: io.BytesIO) -> None:
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL" and not _ALLOWED.fullmatch(str(argument)):
            raise CheckpointError(
                f"contains {str(argument).replace(' ', '.')[:100]}, which is neither a tensor nor a plain container; "
                "save the state dict alone"
            )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
