"""Bar R10: malicious checkpoints run no code, take little time, and are rejected with the name of the file."""

import io
import json
import os
import pickle
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pgat_fast.compat import to_original_layout
from pgat_fast.config import load_config
from pgat_fast.errors import CheckpointError
from pgat_fast.model import build_model
from pgat_fast.training.checkpoint import newest_good, read_checkpoint, save_checkpoint, verify_checkpoint
from pgat_fast.training.import_export import import_checkpoint
from tests.conftest import TINY
from tests.pgat_fast.training.checkpoints import checkpoint_of, name_of
from tests.pgat_fast.training.hostile import (
    Call,
    Touch,
    archive,
    archived,
    canonical,
    forge,
    nested_pickle,
    old_format,
    safetensors,
    saved,
    seal,
    storage_of,
    tensor_entry,
)

SLOWEST = 2.0
"""Limit of processor seconds for one file, bar R10. Wall-clock time would include other work of the machine."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with a good checkpoint of step 1; then assert that no code has written `MARK`."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "run" / "checkpoints"
    save_checkpoint(root, name_of(1), checkpoint_of(1))
    yield root
    assert not Path("MARK").exists()


def assert_refused(path: Path, file: str) -> str:
    """Assert that the fault is found in time and names `file`, and that the previous checkpoint is used; return it."""
    started = time.process_time()
    faults = verify_checkpoint(path)
    assert time.process_time() - started < SLOWEST
    assert len(faults) == 1
    assert faults[0].startswith(str(path / file))
    assert len(faults[0]) < 1000
    with pytest.raises(CheckpointError, match=file):
        read_checkpoint(path)
    loaded = newest_good(path.parent)
    assert loaded is not None
    assert loaded[0].name == name_of(1)
    return faults[0]


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


TRAINING: dict[str, tuple[Callable[[], bytes], str]] = {
    "code in an archive": (lambda: archived({"a": Touch()}), r"asks for __builtin__\.exec"),
    "code in a plain pickle": (lambda: pickle.dumps(Touch(), protocol=2), r"asks for __builtin__\.exec"),
    "code in an old file": (lambda: old_format(Touch()), r"asks for __builtin__\.exec"),
    "code by a later protocol": (lambda: archive(pickle.dumps(Touch(), protocol=4)), "STACK_GLOBAL"),
    "a shell": (lambda: archived(Call(os.system, "touch MARK")), r"asks for posix\.system"),
    "another load": (lambda: archived(Call(torch.load, "x")), r"asks for torch\.serialization\.load"),
    "a hundred gigabytes": (lambda: archived(Call(bytearray, 10**11)), r"asks for __builtin__\.bytearray"),
    "a compressed archive": (zip_bomb, "compressed archive"),
    "two pickles": (two_pickles, "that torch.save did not write"),
    "no pickle": (lambda: archive(b""), "damaged"),
    "a storage that is not there": (lambda: storage_of(10**12), "damaged"),
    "a storage of negative size": (lambda: storage_of(-5), "damaged"),
    "a tensor without memory": (
        lambda: saved({"a": torch.zeros(1).expand(10**12)}),
        r"training\.a shows 4,000,000,000,000 bytes out of 4",
    ),
    "a hundred thousand levels": (lambda: nested_pickle(100_000), "nested too deeply"),
    "levels of lists": (lambda: nested_pickle(100), "nested too deeply"),
    "no dict": (lambda: saved([1, 2]), "holds a list, not a dict"),
    "compiled code": (lambda: archive(pickle.dumps({}, protocol=2), **{"constants.pkl": b"x"}), "TorchScript archive"),
    "a set of tensors": (lambda: saved({"a": {1, 2}}), r"training\.a is a builtins\.set"),
    "text": (lambda: b"weights\n" * 10_000, "damaged"),
    "nothing": (lambda: b"", "damaged"),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_hostile_training_state_is_rejected(root: Path, kind: str) -> None:
    make, message = TRAINING[kind]
    fault = assert_refused(forge(root, training=make()), "training.pt")
    assert re.search(message, fault)


WEIGHTS: dict[str, bytes] = {
    "a header of exabytes": safetensors("{}", length=2**63),
    "a header of all there is": safetensors("{}", length=2**24),
    "a header nested without end": safetensors('{"a":' * 100_000),
    "a header that is no JSON": safetensors("weights"),
    "a header that is a list": safetensors("[]"),
    "a key twice": safetensors(json.dumps(tensor_entry())[:-1] + "," + json.dumps(tensor_entry())[1:], bytes(4)),
    "data that is not there": safetensors(tensor_entry(shape=[100], offsets=[0, 400])),
    "data that overlaps": safetensors(tensor_entry() | {"b": tensor_entry()["a"]}, bytes(4)),
    "data before the beginning": safetensors(tensor_entry(offsets=[-4, 0]), bytes(4)),
    "another shape": safetensors(tensor_entry(shape=[2]), bytes(4)),
    "a shape beyond all numbers": safetensors(tensor_entry(shape=[2**40, 2**40]), bytes(4)),
    "a shape of text": safetensors(tensor_entry(shape="one"), bytes(4)),
    "a type that is none": safetensors(tensor_entry(dtype="F31"), bytes(4)),
    "bytes behind the end": safetensors(tensor_entry(), bytes(400)),
    "a pickle": pickle.dumps(Touch(), protocol=2),
    "a few bytes": b"ab",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_hostile_weights_are_rejected(root: Path, kind: str) -> None:
    assert_refused(forge(root, weights=WEIGHTS[kind]), "model.safetensors")


def with_file(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("training.pt")

    return change


def with_entry(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"]["training.pt"].update(entry)


def with_about(**about: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["about"].update(about)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a way out": (with_file("../../../etc/passwd"), "lists the files"),
    "an absolute path": (with_file("/etc/passwd"), "lists the files"),
    "one more file": (lambda m: m["files"].update(x=m["files"]["training.pt"]), "lists the files"),
    "files in a list": (lambda m: m.update(files=["model.safetensors"]), "lists the files"),
    "a size that is text": (with_entry(bytes="many"), r"files\.training\.pt\.bytes is 'many'"),
    "a size below 0": (with_entry(bytes=-1), r"bytes is -1"),
    "a size that is true": (with_entry(bytes=True), r"bytes is True"),
    "a size beyond all disks": (with_entry(bytes=10**18), r"bytes is 1000000000000000000, not a size up to"),
    "a hash that is a number": (with_entry(sha256=5), r"sha256 is 5"),
    "a hash that is long": (with_entry(sha256="a" * 10_000), r"sha256 is 'aaa"),
    "an entry too many": (with_entry(path="/etc/passwd"), "not its bytes and sha256"),
    "about a list": (lambda m: m.update(about=[1]), "about is list"),
    "a best elsewhere": (with_about(best="../../../etc"), r"about\.best is '\.\./"),
    "a step that is text": (with_about(step="3"), r"about\.step is '3'"),
    "a config that is a list": (with_about(config=[]), r"about\.config is list"),
    "a newer schema": (lambda m: m.update(schema=2), "newer pgat-fast .upgrade"),
    "a schema that is text": (lambda m: m.update(schema="1"), "schema is '1'"),
    "another format": (lambda m: m.update(format="zip"), "format is not"),
    "a key too many": (lambda m: m.update(extra=1), "has the keys"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifest_with_invalid_entry_is_rejected(root: Path, kind: str) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    manifest = json.loads((path / "manifest.json").read_bytes())
    change, message = MANIFESTS[kind]
    change(manifest)
    if kind == "a key too many":
        manifest["sha256"] = manifest.pop("sha256")
    seal(path, manifest)
    fault = assert_refused(path, "manifest.json")
    assert re.search(message, fault)


JSON: dict[str, tuple[bytes, str]] = {
    "brackets without end": (b"[" * 4_000_000, "nested too deeply"),
    "objects without end": (b'{"a":' * 700_000, "nested too deeply"),
    "levels that are closed": (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
    "a number of a million digits": (b'{"format": ' + b"9" * 1_000_000 + b"}", "damaged, or no JSON"),
    "a key twice": (b'{"format": "a", "format": "pgat-fast checkpoint"}', "'format' is there twice"),
    "not a number": (b'{"format": NaN}', "NaN is no JSON"),
    "infinity": (b'{"format": -Infinity}', "-Infinity is no JSON"),
    "a number too large": (b'{"format": 1e999}', "format is inf"),
    "a list": (b"[]", "is list"),
    "half a text": (b'{"format": "pgat', "damaged, or no JSON"),
    "another encoding": (json.dumps({"format": "é"}, ensure_ascii=False).encode("utf-16"), "damaged, or no JSON"),
    "5 MB": (b" " * 5_000_000, "more than the 4,194,304 that are read"),
    "many small objects": (b'{"a": [' + b"{}," * 1_300_000 + b"{}]}", "format is not"),
    "a pickle": (pickle.dumps(Touch(), protocol=2), "damaged, or no JSON"),
}


@pytest.mark.parametrize("kind", JSON)
def test_manifest_with_invalid_json_is_rejected(root: Path, kind: str) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    raw, message = JSON[kind]
    (path / "manifest.json").write_bytes(raw)
    fault = assert_refused(path, "manifest.json")
    assert re.search(message, fault)


def test_manifest_not_in_canonical_form_is_rejected(root: Path) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    content = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(json.dumps(content).encode())
    assert "does not match its own sha256" in assert_refused(path, "manifest.json")
    (path / "manifest.json").write_bytes(canonical(content))
    assert verify_checkpoint(path) == []


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "training.pt"])
@pytest.mark.parametrize("to", ["/etc/passwd", "/dev/zero", "../epoch-0001-step-00000001/training.pt"])
def test_links_are_not_followed(root: Path, file: str, to: str) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    (path / file).unlink()
    (path / file).symlink_to(to)
    assert "a symbolic link, which is not followed" in assert_refused(path, file)


def test_sparse_file_of_a_terabyte_is_rejected(root: Path) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    for file in ("manifest.json", "training.pt"):
        size = (path / file).stat().st_size
        os.truncate(path / file, 2**40)
        assert_refused(path, file)
        os.truncate(path / file, size)


# --- importing files in the original layout ---


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    config = load_config(None, TINY)
    return to_original_layout(build_model(config).state_dict(), config)


ORIGINALS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "code beside the weights": (lambda state: archived({"state_dict": {}, "a": Touch()}), "asks for __builtin__.exec"),
    "code in an old file": (lambda state: old_format(Touch()), "asks for __builtin__.exec"),
    "code in a plain pickle": (lambda state: pickle.dumps(Touch(), protocol=2), "asks for __builtin__.exec"),
    "a hundred gigabytes": (lambda state: archived(Call(bytearray, 10**11)), "asks for __builtin__.bytearray"),
    "a zip bomb": (lambda state: zip_bomb(), "compressed archive"),
    "a storage that is not there": (lambda state: storage_of(10**12), "damaged"),
    "names that are numbers": (lambda state: saved({1: torch.ones(1)}), "the key 1"),
    "no tensors": (lambda state: saved(dict.fromkeys(state, 1.0)), "not tensors"),
    "a list": (lambda state: saved([1]), "the state is a list"),
    "no names": (lambda state: saved({}), "missing"),
    "dicts within dicts": (
        lambda state: saved({"model": {"model": {"model": {"model": {}}}}}),
        "is a dict, not a tensor",
    ),
    "a name too few": (lambda state: saved(dict(list(state.items())[1:])), r"missing \(1\)"),
    "a name too many": (lambda state: saved(state | {"x": torch.ones(1)}), r"unknown \(1\)"),
    "another shape": (lambda state: saved(state | {next(iter(state)): torch.ones(3, 3, 3)}), r"wrong shape \(1\)"),
    "tensors without memory": (
        lambda state: saved({name: torch.zeros(1).expand(tensor.shape) for name, tensor in state.items()}),
        "has fewer numbers stored",
    ),
    "not a number": (lambda state: saved({n: t * float("nan") for n, t in state.items()}), "holds NaN"),
    "whole numbers": (lambda state: saved({n: t.int() for n, t in state.items()}), "not a dense one of real numbers"),
    "text": (lambda state: b"weights", "damaged"),
    "nothing": (lambda state: b"", "damaged"),
}


@pytest.mark.parametrize("kind", ORIGINALS)
def test_hostile_file_in_original_layout_is_rejected(
    root: Path, kind: str, original: dict[str, torch.Tensor], tiny: list[str], tmp_path: Path
) -> None:
    make, message = ORIGINALS[kind]
    file = tmp_path / "weights.pth"
    file.write_bytes(make(original))
    started = time.process_time()
    with pytest.raises(CheckpointError, match=message) as error:
        import_checkpoint(file, load_config(None, tiny), tmp_path / "imported")
    assert time.process_time() - started < SLOWEST
    assert str(error.value).startswith(f"{file}: ")
    assert not (tmp_path / "imported").exists()
