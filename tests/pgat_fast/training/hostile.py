"""Malicious checkpoints with correct hashes."""

import hashlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from pgat_fast.training.checkpoint import save_checkpoint
from tests.pgat_fast.training.checkpoints import checkpoint_of, name_of


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


def safetensors(header: str | bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    raw = (
        json.dumps(header).encode()
        if isinstance(header, dict)
        else header.encode()
        if isinstance(header, str)
        else header
    )
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor_entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def canonical(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def forge(root: Path, **contents: bytes) -> Path:
    """Write a checkpoint with the given content of `weights` or `training` and a matching manifest."""
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    manifest = json.loads((path / "manifest.json").read_bytes())
    for kind, raw in contents.items():
        name = {"weights": "model.safetensors", "training": "training.pt"}[kind]
        (path / name).write_bytes(raw)
        manifest["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    seal(path, manifest)
    return path


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest` with its correct hash."""
    manifest.pop("sha256", None)
    (path / "manifest.json").write_bytes(
        canonical(manifest | {"sha256": hashlib.sha256(canonical(manifest)).hexdigest()})
    )
