"""Files of `torch.save` that other programs have written: their tensors, whatever else the file holds.

Three formats are read: archives (since torch 1.6), the earlier format, and plain pickles. Nothing in a file is executed
(`inert_pickle`), and no more memory is used than a few times the size of the file.
"""

import io
import sys
import zipfile
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from pgat_fast.errors import CheckpointError
from pgat_fast.training.inert_pickle import Budget, Global, Placeholder, read_pickle

_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""First pickle of the format before torch 1.6; protocol, machine, the object and the keys of its storages follow."""
_DTYPES: Final = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
_MOST_DIMENSIONS: Final = 64
_TENSORS: Final = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3")
_PARAMETERS: Final = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")


def read_torch_file(raw: bytes) -> Any:
    """Return the content of a file of `torch.save`: dense tensors on the CPU, in Python containers.

    Other objects are replaced by `Placeholder`.

    Raises CheckpointError, without the name of the file, if it is damaged or has another format.
    """
    try:
        return _read_archive(raw) if raw[:4] == b"PK\x03\x04" else _read_pickles(raw, Budget(2 * len(raw)))
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # its type depends on the position of the fault in the file
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"damaged, or not a file of torch.save: {reason[0][:200]}") from error


def _read_archive(raw: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(raw):
            raise CheckpointError("a compressed archive, which torch.save does not write; save it again")
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or len(set(names)) < len(names):
            raise CheckpointError(f"damaged, or not a file of torch.save: it has {len(pickles)} files data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise CheckpointError(
                "a TorchScript program: save its weights with "
                '`torch.save(torch.jit.load(FILE, map_location="cpu").state_dict(), "weights.pth")`'
            )
        byteorder = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
        reader = _Reader(lambda key: archive.read(f"{root}data/{key}"), byteorder, Budget(len(raw)))
        return reader.read(io.BytesIO(archive.read(pickles[0])))


def _read_pickles(raw: bytes, budget: Budget) -> Any:
    """Return the object of a file in the format before torch 1.6, or of a plain pickle."""
    file = io.BytesIO(raw)
    plain = _Reader(None, "little", budget)
    first = plain.read(file)
    if not isinstance(first, int) or first != _MAGIC:
        return first
    plain.read(file)
    machine = plain.read(file)
    start = file.tell()
    plain.read(file)  # collects the types of the storages, which come after the object
    contents: dict[str, bytes] = {}
    for key in plain.read(file):
        count = int.from_bytes(file.read(8), "little", signed=True)
        size = count * plain.dtypes[key].itemsize
        contents[key] = file.read(size) if 0 <= size <= len(raw) else b""
    file.seek(start)
    little = not isinstance(machine, dict) or machine.get("little_endian", True)
    return _Reader(contents.__getitem__, "little" if little else "big", budget).read(file)


class _Reader:
    """Reads a pickle of `torch.save` and the storages that it names.

    Attributes:
        dtypes: key of each storage -> dtype.
    """

    def __init__(self, content: Callable[[str], bytes] | None, byteorder: str, budget: Budget) -> None:
        """
        Args:
            content: returns the bytes of the storage with a key; None if tensors are not to be read.
            byteorder: `little` or `big`, of the storages.
            budget: for the operations of the pickle.
        """
        self.dtypes: dict[str, torch.dtype] = {}
        self._content, self._swap, self._budget = content, byteorder != sys.byteorder, budget
        self._storages: dict[str, Tensor] = {}

    def read(self, file: io.BytesIO) -> Any:
        return read_pickle(file, persistent=self._persistent, call=self._call, budget=self._budget)

    def _persistent(self, identifier: Any) -> Any:
        """Return the storage with this persistent id as a tensor with one dimension."""
        if identifier[0] == "module":  # a class of a module with its source code, before torch 1.6
            return identifier[1]
        _, kind, key, _, count, *view = identifier
        self.dtypes[key] = dtype = _DTYPES[kind.name.rpartition(" ")[2].removesuffix("Storage")]
        if self._content is None:
            return None
        if key not in self._storages:
            self._storages[key] = self._storage(key, dtype)
        storage = self._storages[key]
        if storage.dtype != dtype:
            storage = storage.view(dtype)
        _, start, count = view[0] if view and view[0] is not None else (None, 0, count)
        if not 0 <= start <= start + count <= len(storage):
            raise ValueError(f"the storage {key} is shorter than it claims")
        return storage[start : start + count]

    def _storage(self, key: str, dtype: torch.dtype) -> Tensor:
        assert self._content is not None
        content = bytearray(self._content(key))
        storage = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if self._swap and content:
            storage.untyped_storage().byteswap(dtype)
        return storage

    def _call(self, name: str, args: tuple[Any, ...]) -> Any:
        if name in _TENSORS:
            return self._tensor(name, *args)
        if name in _PARAMETERS:
            return args[0]
        if name == "torch._tensor _rebuild_from_type_v2" and isinstance(args[0], Global):
            return self._call(args[0].name, args[2])
        if name == "torch.storage _load_from_bytes" and isinstance(args[0], bytes):  # a tensor in a plain pickle
            self._budget.copy(args[0])
            return _read_pickles(args[0], self._budget)
        return NotImplemented

    def _tensor(self, name: str, storage: Any, offset: int, size: Any, stride: Any, *more: Any) -> Any:
        if not isinstance(storage, Tensor):
            return Placeholder(Global("torch Tensor"))
        if len(size) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor has {len(size)} dimensions")
        if name.endswith("v3"):  # the dtype has no class of storages
            dtype = getattr(torch, more[2].name.rpartition(" ")[2])
            storage = storage.view(dtype)
        return torch.as_strided(storage, size, stride, offset + storage.storage_offset())
