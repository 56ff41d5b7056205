"""Bar R10: malicious checkpoints run no code, take little time, and are rejected with the name of the file."""

import json
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pgat_fast.compat import to_original_layout
from pgat_fast.config import load_config
from pgat_fast.errors import CheckpointError
from pgat_fast.model import build_model
from pgat_fast.training.checkpoint import save_checkpoint, verify_checkpoint
from pgat_fast.training.original_checkpoints import import_checkpoint
from tests.conftest import TINY
from tests.pgat_fast.training.checkpoints import (
    SLOWEST,
    assert_detected,
    canonical,
    change_file,
    checkpoint_of,
    name_of,
    seal,
)
from tests.pgat_fast.training.hostile import (
    Call,
    Touch,
    archive,
    archived,
    doubled,
    nested,
    nested_pickle,
    old_format,
    safetensors,
    saved,
    storage_of,
    tensor_entry,
    training_state,
    two_pickles,
    zip_bomb,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with a good checkpoint of step 1; then assert that no code has written `MARK`."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "run" / "checkpoints"
    save_checkpoint(root, name_of(1), checkpoint_of(1))
    yield root
    assert not Path("MARK").exists()


def forge(root: Path, name: str, content: bytes) -> Path:
    """Write a second checkpoint with `content` as the file `name`, and a manifest that matches it; return its path."""
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    change_file(path, name, content)
    return path


TORCH: dict[str, tuple[Callable[[], bytes], str]] = {
    "code in an archive": (lambda: archived({"a": Touch()}), r"contains __builtin__\.exec"),
    "code in a plain pickle": (lambda: pickle.dumps(Touch(), protocol=2), r"contains __builtin__\.exec"),
    "code in an old file": (lambda: old_format(Touch()), r"contains __builtin__\.exec"),
    "code by a later protocol": (lambda: archive(pickle.dumps(Touch(), protocol=4)), "damaged"),
    "a hundred gigabytes": (lambda: archived(Call(bytearray, 10**11)), r"contains __builtin__\.bytearray"),
    "a hundred gigabytes of tensor": (lambda: archived(Call(torch.Tensor, 10**11)), r"contains torch\.Tensor"),
    "a compressed archive": (zip_bomb, "compressed archive"),
    "two pickles": (two_pickles, r"contains __builtin__\.exec"),
    "a storage that is not there": (lambda: storage_of(10**12), "damaged"),
    "compiled code": (lambda: archive(pickle.dumps({}, protocol=2), **{"constants.pkl": b"x"}), "damaged"),
    "text": (lambda: b"weights\n" * 10_000, "damaged"),
    "nothing": (lambda: b"", "damaged"),
}
"""Content of files of `torch.save`, and the expected message."""

TORCH_TRAINING: dict[str, tuple[Callable[[], bytes], str]] = TORCH | {
    "a tensor without memory": (lambda: saved({"a": torch.zeros(1).expand(10**12)}), r"training\.a has 4 bytes"),
    "a hundred thousand levels": (lambda: nested_pickle(100_000), "not a training state, but a builtins.list"),
    "levels of lists": (lambda: saved({"a": nested(100)}), "nested too deeply"),
    "lists that double": (lambda: saved({"a": doubled(40)}), "too many dicts, lists and tuples"),
    "no dict": (lambda: saved([1, 2]), "not a training state, but a builtins.list"),
    "a set": (lambda: saved({"a": {1, 2}}), r"training\.a is a builtins\.set"),
}


@pytest.mark.parametrize("kind", TORCH_TRAINING)
def test_hostile_training_state_of_earlier_version_is_rejected(root: Path, kind: str) -> None:
    make, message = TORCH_TRAINING[kind]
    assert re.search(message, assert_detected(forge(root, "training.pt", make()), "training.pt"))


TRAINING: dict[str, tuple[bytes, str]] = {
    "no state": (safetensors({}), "not a training state: KeyError: 'state'"),
    "no JSON": (training_state("weights"), "damaged, or not JSON"),
    "a number too large": (training_state('{"a": ' + "9" * 10_000 + "}"), "damaged, or not JSON"),
    "not a number": (training_state('{"a": NaN}'), "NaN is not JSON"),
    "a key twice": (training_state('{"a": 1, "a": 2}'), "a duplicate key among"),
    "a list": (training_state([1]), "not a training state, but a builtins.list"),
    "a hundred thousand levels": (training_state('{"a":' * 100_000), "nested too deeply"),
    "17 MB": (training_state(" " * 17_000_000), "its header claims 17,0"),
    "levels of lists": (training_state({"a": nested(100)}), "nested too deeply"),
    "a tensor that is not there": (training_state({"a": {"$tensor": "0"}}), "KeyError: '0'"),
    "a tensor twice": (training_state([{"$tensor": "0"}, {"$tensor": "0"}], tensors=1), "KeyError: '0'"),
    "a tensor without a place": (training_state({}, tensors=1), "the tensor 0 is not used"),
    "a list as a name": (training_state({"a": {"$tensor": [1]}}), "KeyError"),
    "an unknown type": (training_state({"a": {"$exec": "x"}}), "KeyError: '.exec'"),
    "two types": (training_state({"a": {"$tuple": [], "$float": "1"}}), "damaged, or not JSON"),
    "a float that is none": (training_state({"a": {"$float": "one"}}), "damaged, or not JSON"),
    "a dict of numbers": (training_state({"a": {"$dict": [1]}}), "TypeError"),
    "a dict with lists as keys": (training_state({"a": {"$dict": [[[1], 2]]}}), "TypeError"),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_hostile_training_state_is_rejected(root: Path, kind: str) -> None:
    raw, message = TRAINING[kind]
    assert re.search(message, assert_detected(forge(root, "training.safetensors", raw), "training.safetensors"))


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
    assert_detected(forge(root, "model.safetensors", WEIGHTS[kind]), "model.safetensors")


def with_file(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"].update({name: manifest["files"].pop("training.safetensors")})


def with_entry(**entry: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"]["training.safetensors"].update(entry)


def with_about(**about: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["about"].update(about)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a way out": (with_file("../../../etc/passwd"), "lists the files"),
    "one more file": (lambda m: m["files"].update(x=m["files"]["training.safetensors"]), "lists the files"),
    "files in a list": (lambda m: m.update(files=["model.safetensors"]), "lists the files"),
    "a size that is text": (
        with_entry(bytes="many"),
        r"files\.training\.safetensors\.bytes is 'many'",
    ),
    "a size below 0": (with_entry(bytes=-1), r"bytes is -1"),
    "a size beyond all disks": (with_entry(bytes=10**18), r"bytes is 1000000000000000000: Input should be less"),
    "a hash that is a number": (with_entry(sha256=5), r"sha256 is 5"),
    "an entry too many": (
        with_entry(path="/etc/passwd"),
        r"\.path is '/etc/passwd': Extra inputs",
    ),
    "about a list": (lambda m: m.update(about=[1]), r"about is list \[1\]"),
    "a best elsewhere": (with_about(best="../../../etc"), r"about\.best is '\.\./"),
    "a number too large": (lambda m: m["about"].update(rows=float("inf")), "Infinity is not JSON"),
    "levels in about": (lambda m: m["about"].update(data={"a": nested(400)}), "nested too deeply"),
    "a config that is a list": (with_about(config=[]), r"about\.config is list"),
    "a newer schema": (lambda m: m.update(schema=3), "newer pgat-fast .upgrade"),
    "the files of another schema": (lambda m: m.update(schema=1), "a checkpoint has model.safetensors and training.pt"),
    "a schema of 0": (lambda m: m.update(schema=0), "schema is 0"),
    "another format": (lambda m: m.update(format="zip"), "no format"),
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
    fault = assert_detected(path, "manifest.json")
    assert re.search(message, fault)


JSON: dict[str, tuple[bytes, str]] = {
    "brackets without end": (b"[" * 4_000_000, "nested too deeply"),
    "objects without end": (b'{"a":' * 700_000, "nested too deeply"),
    "levels that are closed": (b'{"a":' * 500 + b"1" + b"}" * 500, "no format"),
    "a number of a million digits": (b'{"format": ' + b"9" * 1_000_000 + b"}", "damaged, or not JSON"),
    "a key twice": (b'{"format": "a", "format": "pgat-fast checkpoint"}', "a duplicate key among"),
    "not a number": (b'{"format": NaN}', "NaN is not JSON"),
    "infinity": (b'{"format": -Infinity}', "-Infinity is not JSON"),
    "a list": (b"[]", "no format"),
    "half a text": (b'{"format": "pgat', "damaged, or not JSON"),
    "another encoding": (json.dumps({"format": "é"}, ensure_ascii=False).encode("utf-16"), "damaged, or not JSON"),
    "5 MB": (b" " * 5_000_000, "more than the 4,194,304 that are read"),
    "many small objects": (b'{"a": [' + b"{}," * 1_300_000 + b"{}]}", "no format"),
    "a pickle": (pickle.dumps(Touch(), protocol=2), "damaged, or not JSON"),
}


@pytest.mark.parametrize("kind", JSON)
def test_manifest_with_invalid_json_is_rejected(root: Path, kind: str) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    raw, message = JSON[kind]
    (path / "manifest.json").write_bytes(raw)
    fault = assert_detected(path, "manifest.json")
    assert re.search(message, fault)


def test_manifest_not_in_canonical_form_is_rejected(root: Path) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    content = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(json.dumps(content).encode())
    assert "does not match its own sha256" in assert_detected(path, "manifest.json")
    (path / "manifest.json").write_bytes(canonical(content))
    assert verify_checkpoint(path) == []


@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("to", ["/etc/passwd", "/dev/zero", "../epoch-0001-step-00000001/training.safetensors"])
def test_links_are_not_followed(root: Path, file: str, to: str) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    (path / file).unlink()
    (path / file).symlink_to(to)
    assert "a symbolic link, which is not followed" in assert_detected(path, file)


def test_sparse_file_of_a_terabyte_is_rejected(root: Path) -> None:
    path = save_checkpoint(root, name_of(2), checkpoint_of(2))
    for file in ("manifest.json", "training.safetensors"):
        size = (path / file).stat().st_size
        os.truncate(path / file, 2**40)
        assert_detected(path, file)
        os.truncate(path / file, size)


# --- importing files in the original layout ---


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    config = load_config(None, TINY)
    return to_original_layout(build_model(config).state_dict(), config)


ORIGINALS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "code beside no weights": (lambda state: archived({"state_dict": {}, "a": Touch()}), "missing"),
    "code alone": (lambda state: saved(Touch()), r"holds an object of __builtin__\.exec, in which no weights"),
    "a compressed archive": (lambda state: zip_bomb(), "compressed archive"),
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
        "has 4 bytes in memory",
    ),
    "not a number": (lambda state: saved({n: t * float("nan") for n, t in state.items()}), "contains NaN"),
    "whole numbers": (lambda state: saved({n: t.int() for n, t in state.items()}), "not of real numbers"),
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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_import_of_file_far_larger_than_model_is_rejected(root: Path, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    file.touch()
    os.truncate(file, 2**30)
    with pytest.raises(CheckpointError, match=r"1,073,741,824 bytes, more than the [\d,]+ that are read"):
        import_checkpoint(file, load_config(None, TINY), tmp_path / "imported")
