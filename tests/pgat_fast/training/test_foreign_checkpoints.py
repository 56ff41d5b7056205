"""Checkpoints of training scripts: weights beside other objects, in any file format, container and under any prefix."""

import argparse
import collections
import copy
import dataclasses
import datetime
import io
import pathlib
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgat_fast.errors import CheckpointError, name_some
from pgat_fast.training.inert_pickle import MOST_OPERATIONS, Placeholder
from pgat_fast.training.torch_file import read_torch_file
from pgat_fast.training.weight_search import find_weights, label_of
from tests.pgat_fast.training.checkpoints import SLOWEST
from tests.pgat_fast.training.hostile import (
    Call,
    Touch,
    archive,
    archived,
    nested,
    nested_pickle,
    old_format,
    saved,
    storage_of,
    two_pickles,
)

State = dict[str, Tensor]


@dataclasses.dataclass
class Settings:
    rate: float
    schedule: Any = None


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))


@pytest.fixture(scope="module")
def state(model: nn.Sequential) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(found: Any, expected: State) -> bool:
    return list(found) == list(expected) and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in expected
    )


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters())


FORMATS: dict[str, Callable[[Any], bytes]] = {
    "archive": saved,
    "before torch 1.6": lambda value: saved_with(value, _use_new_zipfile_serialization=False),
    "pickle protocol 4": lambda value: saved_with(value, pickle_protocol=4),
    "pickle protocol 5": lambda value: saved_with(value, pickle_protocol=5),
    "plain pickle": pickle.dumps,
    "plain pickle protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "plain pickle protocol 0": lambda value: pickle.dumps(value, protocol=0),
}


def saved_with(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_weights_beside_other_objects_are_read_bit_exactly(form: str, model: nn.Sequential, state: State) -> None:
    optimizer = optimizer_of(model)
    content = collections.defaultdict(
        list,
        loss=np.average([0.3, 0.4]),
        history=np.arange(5.0),
        labels=np.array([1, "a"], dtype=object),
        args=argparse.Namespace(lr=1e-3, path=pathlib.Path("/data")),
        saved=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        settings=Settings(1e-3, schedule=print),
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=9),
        kinds=({1, 2}, frozenset("a"), collections.Counter("ab"), {(1, 2): 3}, slice(3), 1 + 2j, 10**30, b"x", None),
        weights=collections.OrderedDict(state),
    )
    read = read_torch_file(FORMATS[form](content))
    assert equal(read["weights"], state)
    assert isinstance(read["args"], Placeholder)
    assert read["args"].kind == "argparse Namespace"
    found = find_weights(read, state)
    assert found is not None
    assert found.label == "weights"


@pytest.mark.parametrize("form", ["archive", "before torch 1.6", "plain pickle"])
def test_tensors_of_any_kind_equal_those_of_torch_load(form: str) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "float16": base.half(), "bfloat16": base.bfloat16(), "float64": base.double(), "int64": base.long(),
        "int8": base.to(torch.int8), "bool": base > 0, "complex": base.to(torch.complex64), "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3), "transposed": base.t(), "slice": base[1:3, ::2], "whole": base,
        "parameter": nn.Parameter(base.clone()), "gradient": base.clone().requires_grad_(),
    }  # fmt: skip
    if form == "archive":
        tensors |= {"float8": base.to(torch.float8_e4m3fn), "uint16": torch.arange(3).to(torch.uint16)}
    read = read_torch_file(FORMATS[form](tensors))
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype, name
        assert torch.equal(read[name].to(torch.complex64), tensor.detach().to(torch.complex64)), name


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


PLACES: dict[str, tuple[Callable[[State, nn.Module], Any], str]] = {
    "the state": (lambda state, _: state, ""),
    "one key": (lambda state, _: {"epoch": 3, "net": state}, "net"),
    "three keys": (lambda state, _: {"model": {"net": {"w": state}}}, "model.net.w"),
    "a list": (lambda state, _: [3, {"w": state}], "w"),
    "beside numbers": (lambda state, _: {**state, "epoch": 3, "loss": 0.5}, ""),
    "any prefix": (lambda state, _: prefixed("forecaster.model.", state), "forecaster.model"),
    "two wrappers": (
        lambda state, _: {"state_dict": prefixed("module._orig_mod.", state)},
        "state_dict.module._orig_mod",
    ),
    "Lightning": (
        lambda state, _: {"state_dict": prefixed("model.", state) | {"loss.weight": torch.ones(2)}, "callbacks": {}},
        "state_dict.model",
    ),
    "averaged": (lambda state, _: {"n_averaged": torch.tensor(3)} | prefixed("module.", state), "module"),
    "compiled parts": (lambda state, _: {name.replace("1.", "1._orig_mod.", 1): t for name, t in state.items()}, ""),
    "a module": (lambda _, model: model, ""),
    "a module in a module": (lambda _, model: {"model": nn.ModuleDict({"module": model})}, "model.module"),
    "an object": (lambda state, _: argparse.Namespace(weights=state), "weights"),
    "the same twice": (lambda state, _: {"last": state, "best": copy.deepcopy(state)}, "last"),
    "usual and averaged": (
        lambda state, _: {"ema": {n: t + 1 for n, t in state.items()}, "state_dict": state},
        "state_dict",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_are(place: str, state: State, model: nn.Sequential) -> None:
    make, label = PLACES[place]
    found = find_weights(read_torch_file(saved(make(state, model))), state)
    assert found is not None
    assert found.label == label
    assert equal(found.tensors, state)


@pytest.mark.parametrize(
    "content",
    [
        lambda state, other: {"params": state, "params_ema": other},
        lambda state, other: prefixed("params.", state) | prefixed("params_ema.", other),
    ],
)
def test_one_of_several_weights_is_chosen_by_key(content: Callable[..., Any], state: State) -> None:
    other = {name: tensor + 1 for name, tensor in state.items()}
    held = content(state, other)
    with pytest.raises(CheckpointError, match="several sets of weights: 'params', 'params_ema': choose one with --key"):
        find_weights(held, state)
    for key, expected in (("params", state), ("params_ema", other)):
        found = find_weights(held, state, key)
        assert found is not None
        assert equal(found.tensors, expected)
    with pytest.raises(CheckpointError, match=r"--key nowhere: .* under: 'params', 'params_ema'"):
        find_weights(held, state, "nowhere")


def test_key_that_is_a_huge_number_is_named_by_its_type(state: State) -> None:
    assert label_of(10**5000) == "<int>"
    found = find_weights({10**5000: {"other": {"a": 1}}, "model": state}, state)
    assert found is not None
    assert equal(found.tensors, state)


def test_best_part_is_returned_if_names_are_missing(state: State) -> None:
    part = dict(list(state.items())[1:])
    found = find_weights({"epoch": 3, "net": prefixed("module.", part), "other": {"0.weight": torch.ones(1)}}, state)
    assert found is not None
    assert (found.label, found.matches) == ("net.module", len(state) - 1)
    assert find_weights({"a": torch.ones(1), "b": [1, "c"]}, state) is None
    assert name_some([str(k) for k in range(12)]) == "0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 2 more"


HARMLESS: dict[str, Callable[[], bytes]] = {
    "code in an archive": lambda: archived({"a": Touch()}),
    "code in a plain pickle": lambda: pickle.dumps({"a": Touch()}, protocol=2),
    "code in an old file": lambda: old_format({"a": Touch()}),
    "code by a later protocol": lambda: archive(pickle.dumps({"a": Touch()}, protocol=4)),
    "a hundred gigabytes": lambda: archived({"a": Call(bytearray, 10**11)}),
    "a hundred gigabytes of tensor": lambda: archived({"a": Call(torch.Tensor, 10**11)}),
    "an attribute of a function": lambda: archive(
        b"\x80\x02}X\x01\x00\x00\x00ac\x74orch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sbs."
    ),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_objects_are_read_without_running_code(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    assert list(read_torch_file(HARMLESS[kind]())) == ["a"]
    assert not Path("MARK").exists()
    assert torch._utils._rebuild_tensor_v2.__defaults__ is defaults


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("


def endless(use: Callable[[bytes], bytes]) -> bytes:
    """Return an archive with a use of a tensor of 10 ** 12 numbers, all of them one number in memory."""
    tensor = REBUILD + STORAGE + b"K\x00\x8a\x08" + (10**12).to_bytes(8, "little") + b"\x85K\x00\x85\x89}tR"
    return archive(b"\x80\x02" + use(tensor) + b".", data__0=bytes(4))


def storage_archive(key: bytes) -> bytes:
    """Return an archive with a storage of one float32 that has the key on the stack after `key`."""
    start, _, end = STORAGE.partition(b"X\x01\x00\x00\x000")
    return archive(b"\x80\x02" + start + key + end + b".", data__0=bytes(4))


def tensor_archive(*arguments: bytes) -> bytes:
    """Return an archive whose tensor has a storage of one float32 and these arguments: offset, size and stride."""
    call = REBUILD + STORAGE + b"".join(arguments) + b"\x89}tR."
    return archive(b"\x80\x02" + call, data__0=bytes(4))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "two pickles": (two_pickles, "2 files data.pkl"),
    "a storage that is not there": (lambda: storage_of(10**12), "damaged"),
    "a tensor beyond its storage": (lambda: tensor_archive(b"K\x00", b"K\x09\x85", b"K\x01\x85"), "damaged"),
    "a tensor before its storage": (
        lambda: tensor_archive(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
        "damaged",
    ),
    "negative strides": (lambda: tensor_archive(b"K\x00", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "damaged"),
    "a storage whose key is tuples without end": (
        lambda: storage_archive(b"NN\x86" + b"q\x000h\x00h\x00\x86" * 60),
        "unknown form",
    ),
    "numbers without end as the description of a storage": (
        lambda: endless(lambda tensor: tensor + b"Q"),
        "unknown form",
    ),
    "numbers without end as an offset": (
        lambda: endless(lambda tensor: REBUILD + STORAGE + tensor + b"K\x01\x85K\x01\x85\x89}tR"),
        "unknown form",
    ),
    "a program": (lambda: archive(pickle.dumps({}, protocol=2), **{"constants.pkl": b"x"}), "torch.jit.load"),
    "text": (lambda: b"weights\n" * 10_000, "damaged"),
    "nothing": (lambda: b"", "damaged"),
    "a stack that is empty": (lambda: archive(b"\x80\x02R."), "damaged"),
    "an unknown memo": (lambda: archive(b"\x80\x02h\x05."), "damaged"),
    "an extension": (lambda: archive(b"\x80\x02\x82\x01."), "damaged"),
    "no end": (lambda: archive(b"\x80\x02}"), "damaged"),
    "many operations": (lambda: archive(b"\x80\x02" + b"N0" * MOST_OPERATIONS + b"N."), "more than 1,000,000 objects"),
    "many marks": (lambda: archive(b"\x80\x02" + b"(" * MOST_OPERATIONS + b"."), "nested too deeply"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_invalid_file_is_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    content = make()
    started = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(content)
    assert time.process_time() - started < SLOWEST


def repeated(prepared: bytes, body: bytes, count: int) -> bytes:
    """Return an archive whose pickle prepares objects and then repeats an operation on them."""
    return archive(b"\x80\x04" + prepared + body * count + b"N.", data__0=bytes(4))


def long_text(size: int) -> bytes:
    return b"X" + size.to_bytes(4, "little") + b"x" * size


BOMBS: dict[str, Callable[[], bytes]] = {
    "copies of text": lambda: repeated(
        b"c_codecs\nencode\nq\x00" + long_text(10**6) + b"q\x01", b"]h\x00h\x01\x8c\x06latin1\x86R", 10**5
    ),
    "copies of pairs": lambda: repeated(
        b"ccollections\nOrderedDict\nq\x00](" + b"NN\x86" * 10**5 + b"e\x85q\x01", b"h\x00h\x01R", 10**5
    ),
    "copies of files": lambda: repeated(
        b"ctorch.storage\n_load_from_bytes\nq\x00B"
        + (10**6).to_bytes(4, "little")
        + b"}."
        + bytes(10**6 - 2)
        + b"\x85q\x01",
        b"h\x00h\x01R",
        10**5,
    ),
    "names that are lists": lambda: repeated(b"](" + b"N" * 10**5 + b"eq\x00", b"h\x00h\x00\x93", 10**5),
    "dimensions": lambda: repeated(
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00(" + b"K\x01" * 10**5 + b"th\x00tq\x01",
        b"h\x00h\x01R",
        10**5,
    ),
}
"""Pickles that repeat work on one large object."""


@pytest.mark.parametrize("kind", BOMBS)
def test_repeated_work_on_one_object_is_refused(kind: str) -> None:
    raw = BOMBS[kind]()
    started = time.process_time()
    with pytest.raises(CheckpointError):
        read_torch_file(raw)
    assert time.process_time() - started < SLOWEST


@pytest.fixture
def few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit of operations, so that it is reached sooner."""
    monkeypatch.setattr("pgat_fast.training.inert_pickle.MOST_OPERATIONS", 100_000)


@pytest.mark.usefixtures("few_operations")
def test_attributes_that_many_objects_share_are_searched_in_time(state: State) -> None:
    attributes = b"}q\x00(" + b"".join(b"M" + k.to_bytes(2, "little") + b"N" for k in range(5_000)) + b"u0"
    raw = archive(b"\x80\x04" + attributes + b"](" + b"ca\nB\n)\x81h\x00b" * 5_000 + b"e.")
    read = read_torch_file(raw)
    started = time.process_time()
    assert find_weights(read, state) is None
    assert time.process_time() - started < SLOWEST


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append({"a": value})
    return value


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested_pickle(50_000),
        lambda: archive(b"\x80\x02" + b"N" + b"\x85" * 100_000 + b"."),
        lambda: archive(b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns."),
        lambda: saved(nested(100)),
        lambda: saved(cyclic()),
        lambda: archive(b"\x80\x02" + b"ca\nB\n)\x81" * 10**5 + b"b" * (10**5 - 1) + b"."),
        lambda: archive(b"\x80\x02" + b"ca\nB\n)\x81q\x00" + b"ca\nB\n)\x81h\x00h\x00\x86bq\x00" * 60 + b"."),
        lambda: saved({"a": {}}),
    ],
    ids=["lists", "tuples", "a tuple as a key", "levels", "a cycle", "states", "states that double", "empty"],
)
def test_search_in_deep_and_cyclic_content_ends(make: Callable[[], bytes], state: State) -> None:
    started = time.process_time()
    assert find_weights(read_torch_file(make()), state) is None
    assert time.process_time() - started < SLOWEST


@pytest.mark.usefixtures("few_operations")
def test_search_in_modules_that_double_ends(state: State) -> None:
    """Modules that hold the next one twice have 2 ** 30 paths."""
    module = nn.Module()
    for _ in range(30):
        outer = nn.Module()
        outer.a = outer.b = module
        module = outer
    started = time.process_time()
    with pytest.raises(CheckpointError, match="more than 100,000 objects"):
        find_weights(read_torch_file(saved(module)), state)
    assert time.process_time() - started < SLOWEST


def test_tensors_without_memory_are_not_compared(state: State) -> None:
    huge = {name: torch.zeros(1).expand(10**12) for name in state}
    other = {name: torch.zeros(1).expand(10**12) for name in state}
    with pytest.raises(CheckpointError, match="several sets of weights"):
        find_weights({"a": huge, "b": other}, state)
