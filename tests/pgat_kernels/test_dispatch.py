"""Tests of the choice between kernels and plain torch, and of the logged reasons."""

import json
import logging
from pathlib import Path

import pytest
import torch

from bench.gpu.kernel_cases import CASES, DTYPES
from bench.gpu.tune import bucket, case_of
from pgat_kernels import dispatch
from pgat_kernels.dispatch import (
    COVERAGE,
    Kernels,
    listed_rows,
    use_kernel,
    wanted,
    why_no_kernels,
)
from pgat_kernels.instrumentation import record_launches
from pgat_kernels.tuning_table import FILE, Case, Configuration, Entry, Threshold, applying, as_json, read

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_logged() -> None:
    dispatch._log_once.cache_clear()


def test_coverage_lists_every_operator_with_kernels() -> None:
    takes = {line.operator: line.takes for line in COVERAGE}
    assert all(takes[case.operator] for case in CASES)


def test_every_covered_operator_is_measured_once_per_size() -> None:
    measured_cases = [(case.threshold, bucket(case.size)) for case in CASES if case.threshold]
    assert {name for name, _ in measured_cases} == {line.operator for line in COVERAGE if line.takes}
    assert len(set(measured_cases)) == len(measured_cases)


def test_kernels_run_on_gpus_in_supported_dtypes() -> None:
    assert use_kernel("aspects", CUDA, [torch.float32, torch.bfloat16], fits=True)
    assert why_no_kernels(CUDA, torch.float64) == "kernels support float32, bfloat16 and float16, not torch.float64"
    assert why_no_kernels(CPU) == "Triton kernels run on GPUs, not on cpu"
    with record_launches():
        assert use_kernel("aspects", CPU, [torch.float32], fits=True)


def test_fallback_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        assert not use_kernel("feed_forward_block", CUDA, [torch.float32], fits=False)
        assert not use_kernel("feed_forward_block", CPU, [torch.float32], fits=True)
    prefix = "feed_forward_block is computed in plain torch: "
    assert [record.getMessage() for record in caplog.records] == [
        prefix + "its kernels support rows of up to 256 columns, any hidden layer",
        prefix + "Triton kernels run on GPUs, not on cpu",
    ]


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("", False)])
def test_interpreted_parses_the_variable_as_triton_does(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert dispatch.interpreted() is expected


HEAD, LOW = Case("edge_head", 4, 256), Case("edge_head", 2, 256)


@pytest.fixture
def on_a_known_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which the kernels of one operator, in float32, are faster from 100 rows on."""
    thresholds = {HEAD: 100, LOW: None, Case("edge_head", 4, 64): 5}
    entry = Entry("a GPU", {}, {case: Threshold(rows, "measured") for case, rows in thresholds.items()})
    monkeypatch.setattr(dispatch, "gpu_of", lambda device: "sm_90")
    monkeypatch.setattr(dispatch, "applying", {"sm_90": entry}.get)


@pytest.mark.usefixtures("on_a_known_gpu")
def test_listed_kernels_are_used_from_the_listed_rows_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def taken(rows: int, size: int = 208, dtype: torch.dtype = torch.float32, operator: str = "edge_head") -> bool:
        return wanted(Kernels.LISTED, operator, torch.ones(rows // 4, 4, 3), size, dtype)

    for _ in range(2):
        assert taken(100)
        assert not taken(96)
        assert taken(8, size=64), "the smallest case that holds it"
        assert not taken(10_000, dtype=torch.bfloat16)
        assert not taken(10_000, size=512)
        assert not taken(10_000, operator="aspects")
    assert [record.getMessage() for record in caplog.records] == [
        "edge_head is computed in plain torch: its kernels are faster only from 100 rows on (measured for a GPU)",
        "edge_head is computed in plain torch: its kernels are not faster (measured for a GPU)",
        "edge_head is computed in plain torch: nothing is known of its kernels on sm_90 at 32 bits and this size",
        "aspects is computed in plain torch: nothing is known of its kernels on sm_90 at 32 bits and this size",
    ]
    assert wanted(Kernels.ON, "aspects", torch.ones(1, 3), 512)
    assert not wanted(Kernels.OFF, "edge_head", torch.ones(1000, 3), 208)


@pytest.mark.usefixtures("on_a_known_gpu")
def test_listed_rows_describes_the_table() -> None:
    assert listed_rows("aspects", "sm_90") == "plain torch: nothing is known on sm_90"
    assert listed_rows("edge_head", "sm_90") == (
        "32 bits, up to 256: kernel from 100 rows on (measured); 16 bits, up to 256: plain torch (measured); "
        "32 bits, up to 64: kernel from 5 rows on (measured)"
    )


@pytest.mark.usefixtures("on_a_known_gpu")
def test_choice_is_made_at_compile_time() -> None:
    def both(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if wanted(Kernels.LISTED, "edge_head", x, 208) else x - 1

    compiled = torch.compile(both, fullgraph=True, dynamic=False, backend="eager")
    assert compiled(torch.zeros(100, 2)).eq(1).all()
    assert compiled(torch.zeros(99, 2)).eq(-1).all()


def test_measurements_round_trip_and_broken_files_are_named(tmp_path: Path) -> None:
    read(FILE)
    file = tmp_path / "tuning_table.json"
    thresholds = {HEAD: Threshold(100, "measured"), LOW: Threshold(None, "modelled")}
    entry = Entry("a GPU", {HEAD: Configuration(32, 4, 1)}, thresholds)
    file.write_text(json.dumps({"sm_90": as_json(entry)}))
    assert read(file) == {"sm_90": entry}
    unknown = as_json(entry) | {"thresholds": [{**HEAD._asdict(), "rows": 1, "source": "guessed"}]}
    lines = ['{"sm_90": {}}', '{"sm_90": {"device": "", "configurations": [1], "thresholds": []}}']
    for broken in ("", "[]", *lines, json.dumps({"sm_90": unknown})):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"tuning_table\.json is not what `python -m bench\.gpu\.tune` writes"):
            read(file)


def test_shipped_table_has_a_line_for_every_operator_on_four_architectures() -> None:
    """Each is marked with its source; no GPU has measured one yet."""
    table = read(FILE)
    assert set(table) >= {"sm_80", "sm_89", "sm_90", "sm_100"}
    expected = {case_of(case, DTYPES[case.dtypes[0]]) for case in CASES if case.threshold}
    for entry in table.values():
        assert set(entry.thresholds) >= expected
        assert entry.source == "modelled"


def test_unlisted_architecture_uses_the_lines_of_its_predecessor() -> None:
    table = read(FILE)
    assert applying("sm_86") == table["sm_80"]
    assert applying("sm_87") == table["sm_80"]
    assert applying("sm_103") == table["sm_100"]
    for alone in ("sm_120", "sm_75", "gfx942", "default"):
        assert applying(alone) is None
