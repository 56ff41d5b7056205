"""Tests of `bench.gpu.tune`: what it tries, keeps and writes, with made-up times."""

import pytest
import torch

from bench.gpu import tune
from pgat_kernels.instrumentation import try_configuration
from pgat_kernels.launch_configs import DEFAULT, TABLE, configuration
from pgat_kernels.tuning_table import Case, Configuration

EDGES = Case("edge_attention forward", 2, 512)


def never() -> bool:
    """Return False: the GPU is not lost."""
    return False


def seconds(chosen: Configuration) -> float:
    """Return made-up seconds: 64 rows, 8 warps, 2 stages are fastest; 128 rows do not fit."""
    if chosen.block == 128:
        raise RuntimeError("out of resource: shared memory")
    return 1 + abs(chosen.block - 64) / 64 + abs(chosen.warps - 8) / 8 + abs(chosen.stages - 2)


def test_search_finds_fastest_one_number_after_the_other() -> None:
    messages: list[str] = []
    best = tune.fastest(EDGES, Configuration(32, 4, 1), seconds, messages.append, never)
    assert best == Configuration(64, 8, 2)
    assert any("128" in line and "out of resource" in line for line in messages)
    assert "(32, 4, 1, 0) 3000.000 ms -> (64, 8, 2, 0) 1000.000 ms" in messages[-1]


def test_gain_within_noise_is_not_kept() -> None:
    start = Configuration(32, 4, 1)
    assert (
        tune.fastest(EDGES, start, lambda chosen: 1.0 if chosen == start else 0.99, lambda line: None, never) == start
    )


def test_lost_gpu_ends_search() -> None:
    def good(chosen: Configuration) -> float:
        if chosen.block != 32:
            raise RuntimeError("an illegal memory access, by whatever name")
        return 1.0

    with pytest.raises(RuntimeError):
        tune.fastest(EDGES, Configuration(32, 4, 1), good, lambda line: None, lambda: True)


def test_search_replaces_start_that_does_not_run() -> None:
    start = Configuration(128, 4, 1)
    assert tune.fastest(EDGES, start, seconds, lambda line: None, never) == Configuration(64, 8, 2)

    def none_runs(chosen: Configuration) -> float:
        raise RuntimeError("out of resource")

    assert tune.fastest(EDGES, start, none_runs, lambda line: None, never) is None


@pytest.mark.compile
def test_kernels_are_compared_with_compiled_plain_torch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use more shapes than torch compiles one function for."""
    monkeypatch.setattr(tune, "LADDER", (2, 1))
    operators = [case for case in tune.CASES if case.operator == "aspects"]
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=1):
        pairs = tune.against_plain(operators[0], torch.float32, torch.device("cpu"), 4)
    assert [rows for rows, *_ in pairs] == [2, 4]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


def test_tiles_hold_whole_graphs_and_all_pairs() -> None:
    graphs = tune.candidates(Case("graph_attention forward", 2, 64), Configuration(64, 8, 1), "block")
    assert [candidate.block for candidate in graphs] == [128]
    pairs = tune.candidates(Case("aspects forward", 4, 128), Configuration(128, 8, 1, 32), "block")
    assert not list(pairs)
    assert not list(tune.candidates(EDGES, Configuration(32, 4, 1), "columns")), "it has none"


def test_trial_sets_configuration_within_context() -> None:
    chosen = Configuration(128, 2, 3)
    with try_configuration(EDGES, chosen):
        assert configuration("edge_attention forward", 2, 169, "sm_90") == chosen
    assert configuration("edge_attention forward", 2, 169) == TABLE[EDGES][DEFAULT]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(10, 2.0, 1.0), (100, 1.0, 2.0), (1000, 1.0, 2.0)], 100),
        ([(10, 1.0, 2.0), (100, 2.0, 1.0), (1000, 1.0, 2.0)], 1000),
        ([(10, 1.0, 2.0), (100, 1.0, 2.0), (1000, 1.0, float("inf"))], 10),
        ([(10, 1.0, 2.0), (100, 1.0, 2.0), (1000, 2.0, 2.0)], None),
    ],
)
def test_first_rows_from_which_kernels_are_faster(pairs: list[tuple[int, float, float]], expected: int | None) -> None:
    assert tune.first_rows(pairs) == expected


def test_bucket_is_next_power_of_two() -> None:
    assert [tune.bucket(size) for size in (1, 13, 64, 65, 208, 416)] == [1, 16, 64, 128, 256, 512]


def test_missing_gpu_is_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.main([])
    assert "no CUDA device" in capsys.readouterr().err
