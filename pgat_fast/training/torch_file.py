"""Files of `torch.save` that other programs have written: their tensors, whatever else the file holds.

Three formats are read: archives (since torch 1.6), the earlier format, and plain pickles. Nothing in a file is executed
(`inert_pickle`), and no more memory is used than a few times the size of the file.
"""

import io
import sys
import zipfile
from typing import Any, Final

import torch
from torch import Tensor

from pgat_fast.errors import CheckpointError
from pgat_fast.training.inert_pickle import Budget, Global, InertUnpickler, Placeholder

_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""First pickle of the format before torch 1.6; protocol, machine, the object and the keys of its storages follow."""
_DTYPES: Final = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
_MOST_DIMENSIONS: Final = 64


def read_torch_file(raw: bytes) -> Any:
    """Return the content of a file of `torch.save`: dense tensors on the CPU, in Python containers.

    Other objects are replaced by `Placeholder`.

    Raises CheckpointError, without the name of the file, if it is damaged or has another format.
    """
    try:
        return _read_archive(raw) if raw[:4] == b"PK\x03\x04" else _read_pickles(raw, Budget(3 * len(raw)))
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
        reader = _Reader(io.BytesIO(archive.read(pickles[0])), Budget(len(raw)))
        content = reader.load()
        if f"{root}byteorder" in names:
            reader.byteorder = archive.read(f"{root}byteorder").decode()
        for key in reader.storages:
            reader.fill(key, archive.read(f"{root}data/{key}"))
        return content


def _read_pickles(raw: bytes, budget: Budget) -> Any:
    """Return the object of a file in the format before torch 1.6, or of a plain pickle."""
    file = io.BytesIO(raw)
    reader = _Reader(file, budget)
    content, keys = reader.load(), []
    if isinstance(content, int) and content == _MAGIC:
        _, machine, content, keys = (reader.load() for _ in range(4))
        is_big = isinstance(machine, dict) and machine.get("little_endian", True) is False
        reader.byteorder = "big" if is_big else "little"
    if keys != sorted(reader.storages):
        raise ValueError("numbers of tensors are missing")
    for key in keys:
        memory, dtype = reader.storages[key]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != len(memory):
            raise ValueError(f"the storage {key} has another size than its tensors")
        reader.fill(key, file.read(len(memory)))
    return content


class _Reader(InertUnpickler):
    """Reads the pickles of `torch.save`. What they hold of tensors is zero until `fill` has set it.

    Attributes:
        storages: key of each storage -> its memory, and the dtype of its numbers.
        byteorder: of the storages.
    """

    def __init__(self, file: io.BytesIO, budget: Budget) -> None:
        super().__init__(file, budget)
        self.storages: dict[str, tuple[bytearray, torch.dtype]] = {}
        self.byteorder = "little"

    def fill(self, key: str, content: bytes) -> None:
        """Set the numbers of a storage; raise ValueError if it has another size."""
        memory, dtype = self.storages[key]
        if len(content) != len(memory):
            raise ValueError(f"the storage {key} is shorter than it claims")
        memory[:] = content
        if self.byteorder != sys.byteorder and memory:
            torch.frombuffer(memory, dtype=dtype).untyped_storage().byteswap(dtype)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage with this persistent id as a tensor with one dimension."""
        match pid:
            case ("module", kind, *_):  # a class of a module with its source code, before torch 1.6
                return kind
            case ("storage", Global(name), str(key), _, int(count), *view):
                dtype = _DTYPES[name.rpartition(" ")[2].removesuffix("Storage")]
            case _:
                raise ValueError("a storage has an unknown form")
        if key not in self.storages:
            self.budget.copy(count * dtype.itemsize)
            self.storages[key] = bytearray(count * dtype.itemsize), dtype
        memory, start = self.storages[key][0], 0
        storage = torch.frombuffer(memory, dtype=dtype) if memory else torch.empty(0, dtype=dtype)
        match view:
            case [(_, int(start), int(count))]:
                pass
        if not 0 <= start <= start + count <= len(storage):
            raise ValueError(f"the storage {key} is shorter than it claims")
        return storage[start : start + count]

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        module, _, function = name.rpartition(" ")
        if module == "torch._utils" and function.startswith("_rebuild_tensor"):
            return _tensor(*args)
        if module == "torch._utils" and function.startswith("_rebuild_parameter"):
            return args[0]
        if function == "_rebuild_from_type_v2" and isinstance(args[0], Global) and isinstance(args[2], tuple):
            return self.call(args[0].name, args[2])
        if name == "torch.storage _load_from_bytes" and isinstance(args[0], bytes):  # a tensor in a plain pickle
            self.budget.copy(len(args[0]))
            return _read_pickles(args[0], self.budget)
        return super().call(name, args)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Any:
    """Return a view of `storage`. `more`: gradient, hooks, and the dtype if it has no class of storages."""
    if not isinstance(storage, Tensor):
        return Placeholder(Global("torch Tensor"))
    lists = all(isinstance(numbers, tuple | list) and len(numbers) <= _MOST_DIMENSIONS for numbers in (size, stride))
    if not lists or not isinstance(offset, int):
        raise ValueError("a tensor has an unknown form, or too many dimensions")
    if len(more) > 2 and isinstance(more[2], Global):
        storage = storage.view(vars(torch)[more[2].name.rpartition(" ")[2]])
    return torch.as_strided(storage, size, stride, offset + storage.storage_offset())
