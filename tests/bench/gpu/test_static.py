"""Tests of `bench.gpu.static`: the committed table is that of the current kernels, and has no fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.static import SHARED_LIMITS, against_committed, as_markdown, combinations, compare, faults_of
from tests.combinations import covering

STEM = Path("bench/results/offline/2026-11-30/static")
COMMITTED: dict[str, Any] = json.loads(STEM.with_suffix(".json").read_text())


@pytest.mark.slow  # dozens of kernels through the offline compiler
@pytest.mark.timeout(900)
def test_kernels_agree_with_committed_figures() -> None:
    """Compile for two of the targets, with two kinds of tensor-core instructions, and not every dtype for each.

    Every two values of shape, dtype and target occur together. All five targets with all dtypes:
    `python -m bench.gpu.static --check`, which is part of `make bench-check`.
    """
    chosen = covering(combinations(["sm_80", "sm_90"]), 2)
    assert against_committed(chosen) == []


def test_committed_figures_have_no_fault_on_any_target() -> None:
    records = COMMITTED["kernels"]
    assert {record["target"] for record in records} == set(SHARED_LIMITS)
    assert [fault for record in records for fault in faults_of(record)] == []
    assert STEM.with_suffix(".md").read_text() == as_markdown(records, COMMITTED["triton"])


def a_record(**changes: Any) -> dict[str, Any]:
    record = {"kernel": "k", "shape": "s", "dtype": "bf16", "target": "sm_90", "registers": 90, "shared": 1000}
    return record | {"spills": 0, "spills_in_loops": 0, "stack": 0, "atomics": 0, "tensor_core": {"HGMMA": 4}} | changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spills": 5, "spills_in_loops": 3}, "3 spills in loops"),
        ({"stack": 16}, "16 bytes of stack"),
        ({"atomics": 1}, "1 atomics"),
        ({"shared": 300_000}, "300000 bytes of shared memory, where the target has 232448"),
        ({"tensor_core": {"HMMA": 4}}, "no HGMMA instructions"),
        ({"tensor_core": {}, "target": "sm_80"}, "no tensor-core instructions"),
        ({"registers": 113}, "registers 90 -> 113"),
        ({"shared": 1001}, "shared 1000 -> 1001"),
    ],
)
def test_faults_of_compiled_kernel(changes: dict[str, Any], fault: str) -> None:
    worse = a_record(**changes)
    assert fault in faults_of(worse, a_record())
    assert not faults_of(a_record(), a_record())
    assert not faults_of(a_record(spills=5, stack=16))
    assert not faults_of(a_record(registers=112), a_record())  # compilations differ slightly
    assert not faults_of(a_record(dtype="fp32", tensor_core={}))


def test_added_and_removed_kernels_are_reported() -> None:
    assert compare([a_record(kernel="new")], [a_record(kernel="old")]) == [
        "new, s, bf16, sm_90: not in the committed figures",
        "old, s, bf16, sm_90: only in the committed figures",
    ]
