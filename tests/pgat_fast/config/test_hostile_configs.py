"""Hostile files are refused within 2 seconds, which `refusal` checks, and run nothing."""

import os
from pathlib import Path

import pytest

from pgat_fast.config.yaml_reader import MAX_BYTES, MAX_ITEMS
from tests.pgat_fast.config.refusals import listed_errors, refusal

HOSTILE = {
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\ntargets: [*d, *d]\n",
    "aliases": "targets: [" + "*a, " * 16000 + "]",
    "anchors": "targets: [" + "&a 1, " * 10000 + "]",
    "duplicates": "epochs: 1\n" * 6500,
    "keys": "".join(f"k{i}: 1\n" for i in range(6000)),
    "misspelled keys": "".join(f"learning_ratx{i}: 1\n" for i in range(990)),
    "long key": "? " + "k" * 60000 + "\n: 5",
    "long integer": "epochs: " + "9" * 60000,
    "long hexadecimal": "epochs: 0x" + "f" * 60000,
    "long exponent": "learning_rate: 1e" + "9" * 60000,
    "long quoted integer": "epochs: '" + "9" * 60000 + "'",
    "long list": "targets: [" + ",".join(f"n{i}" for i in range(8000)) + "]",
    "long comma list": "targets: " + ",".join(f"n{i}" for i in range(9000)),
    "long flow list": "targets: [" + "1," * 32000 + "]",
    "deep lists": "targets: " + "[" * 60000,
    "deep mappings": "{a: " * 15000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(350)),
    "explicit keys": "? " * 32000,
    "dashes": "- " * 32000,
    "line breaks in quotes": 'name: "' + "x\n" * 32000 + '"',
    "tag of many marks": "epochs: " + "!" * 65000,
    "directives": "%TAG !a! b\n" * 5900,
    "documents": "---\n" * 16000,
    "block text": "name: |\n" + " x\n" * 21000,
    "percent signs": "%" * 65000,
    "control characters": "\x01" * 65000,
}

# What a loader that constructs Python objects would run.
COMMAND = "!!python/object/apply:os.system ['touch MARK']"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_in_time(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert path.stat().st_size <= MAX_BYTES
    assert all(error.startswith(f"{path}:") for error in listed_errors(path))


def test_list_longer_than_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    texts = ["targets: [" + "1," * count + "]" for count in (MAX_ITEMS, MAX_ITEMS + 1)]
    refusals = []
    for text in texts:
        path.write_text(text, encoding="utf-8")
        refusals.append(refusal(path))
    too_long = f"{path}:1: targets: a list of more than 1000 items: this is no configuration file"
    assert [too_long in text for text in refusals] == [False, True]


@pytest.mark.parametrize("name", ["aliases", "long integer", "deep lists", "control characters"])
def test_hostile_override_is_refused_in_time(name: str) -> None:
    assert all(error.startswith("override ") for error in listed_errors(None, [f"epochs={HOSTILE[name]}"]))


@pytest.mark.parametrize(
    "text",
    [
        f"epochs: {COMMAND}",
        f"training: {{epochs: {COMMAND}}}",
        f"targets: [{COMMAND}]",
        f"features: {COMMAND}",
        COMMAND,
        f"? {COMMAND}\n: 1",
        "epochs: !!python/object/new:os.system ['touch MARK']",
        "%TAG !p! tag:yaml.org,2002:python/object/apply:\n---\nepochs: !p!os.system ['touch MARK']",
        "epochs: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch MARK']",
    ],
)
def test_tag_runs_no_code(tmp_path: Path, text: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "c.yaml"
    path.write_text(text.replace("MARK", str(mark)), encoding="utf-8")
    assert "tags (!!python/object" in refusal(path)
    assert not mark.exists()


def test_tag_in_override_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    assert "tags (!!python/object" in refusal(None, ["epochs=" + COMMAND.replace("MARK", str(mark))])
    assert not mark.exists()


@pytest.mark.parametrize("name", ["epochs", "seq_len", "label_len", "learning_rate", "path", "targets"])
def test_integer_too_long_to_print_is_refused(name: str) -> None:
    assert f"{name}: found an integer of more than 60 digits" in refusal({name: 10**5000})


def test_long_override_is_refused() -> None:
    assert refusal(None, ["name=" + "x" * (MAX_BYTES + 1)]).endswith(
        "longer than 65536 characters: write a shorter value"
    )


def test_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert refusal(path) == f"{path}: the file is larger than 64 KiB: name a YAML file with settings"


def test_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "this is not a regular file" in refusal(tmp_path / "pipe")


def test_endless_device_is_refused() -> None:
    assert refusal("/dev/zero").startswith("/dev/zero: this is not a regular file")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000], ids=["NUL", "surrogate", "long"])
def test_impossible_file_name_is_refused(name: str) -> None:
    message = refusal(name)
    assert message.isprintable()
    assert "the file does not exist: " in message or "cannot be read (File name too long): " in message
