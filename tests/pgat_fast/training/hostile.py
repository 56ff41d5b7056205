"""Malicious files."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import pytest
import torch


class Touch:
    """An object that creates the file `MARK` in the working directory when `pickle.load` reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('MARK', 'w').close()",)


class Call:
    """An object that is unpickled as the result of calling `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def archive(pickled: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """Return a file in the format of `torch.save` with `pickled` as its pickle and `others` as further entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
        for name, content in others.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return buffer.getvalue()


def zip_bomb() -> bytes:
    """Return a megabyte that unpacks to a gigabyte of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        with file.open("archive/data/0", "w") as entry:
            for _ in range(256):
                entry.write(bytes(2**22))
    return buffer.getvalue()


def two_pickles() -> bytes:
    """Return an archive with two pickles; which of them is read depends on the reader."""
    buffer = io.BytesIO(archived({}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Touch(), protocol=2))
    return buffer.getvalue()


def nested(levels: int) -> list[Any]:
    """Return lists with `levels` levels."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels: int) -> list[Any]:
    """Return lists with `levels` levels, each of which contains the next one twice."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def archived(value: Any) -> bytes:
    return archive(pickle.dumps(value, protocol=2))


def old_format(value: Any) -> bytes:
    """Return a file in the format of torch before 1.6."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, [])
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def storage_of(elements: int) -> bytes:
    """Return a file with a tensor whose storage claims `elements` numbers but contains one."""
    valid_file = saved({"a": torch.zeros(77)})
    with zipfile.ZipFile(io.BytesIO(valid_file)) as file:
        content = file.read("archive/data.pkl")
        assert content.count(b"K\x4d") == 2
    number = b"\x8a\x08" + struct.pack("<q", elements)
    return archive(content.replace(b"K\x4d", number), data__0=bytes(4))


def nested_pickle(depth: int) -> bytes:
    return archive(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")


def safetensors(header: str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def training_state(tree: Any, tensors: int = 0) -> bytes:
    """Return a file of a training state, with the JSON of `tree` (or this text), and tensors `0`, `1`, ..."""
    entries = {str(i): {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(tensors)}
    text = tree if isinstance(tree, str) else json.dumps(tree)
    return safetensors({"__metadata__": {"state": text}} | entries, bytes(4 * tensors))


def tensor_entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
