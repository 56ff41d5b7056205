"""Tests of `bench.studies.ranks`: the formulas, the fit on synthetic times, and real processes."""

import pytest

from bench.studies import ranks
from bench.studies.ranks import all_reduce_seconds, communication, efficiencies, fit
from pgat_fast.distributed.process_group import SingleProcess


def test_ring_all_reduce_takes_bytes_and_messages_and_nothing_for_one_rank() -> None:
    assert all_reduce_seconds(1, 1e9, 1.0, 1.0) == 0
    assert all_reduce_seconds(2, 100.0, 0.0, 10.0) == 10.0
    assert all_reduce_seconds(4, 100.0, 1.0, 10.0) == 6 + 15.0


def test_communication_is_that_of_gradients_and_loss() -> None:
    loss = 2 * 2
    assert communication(4, 0.0, 1.0, 1.0) - loss == pytest.approx(2 * 3)
    assert communication(4, 1e6, 0.0, 1e6) == all_reduce_seconds(4, 1e6, 0.0, 1e6)
    assert communication(1, 1e6, 1.0, 1.0) == 0


def test_efficiency_falls_with_devices_and_faster_if_batch_is_divided() -> None:
    steps = {16: 0.16, 8: 0.09, 4: 0.05, 2: 0.03, 1: 0.02}
    rows = efficiencies(steps, 30_000_000)
    assert [rows[0][kind] for kind in ranks.KINDS] == [1, 1]
    weak = [row["weak"] for row in rows]
    assert weak == sorted(weak, reverse=True)
    assert rows[4]["seconds"] > 8 * rows[3]["seconds"], "beyond a node the slower link counts"
    assert all(row["strong"] < row["weak"] for row in rows[1:] if row["strong"] is not None)


def test_fit_recovers_latency_and_bandwidth() -> None:
    timings = [all_reduce_seconds(2, size, 1e-4, 2e9) for size in ranks.SIZES]
    seconds, bandwidth = fit(2, timings)
    assert seconds == pytest.approx(1e-4)
    assert bandwidth == pytest.approx(2e9)


def add_up_and_take_steps(group: SingleProcess) -> list[float]:
    """Do both, a few times, in one process: starting it takes longer than either."""
    ranks.STEPS, ranks.REPEATS = 1, 1  # the process ends after this
    return [*ranks.add_up(group), *ranks.take_steps(group)]


@pytest.mark.multiprocess
def test_processes_all_reduce_and_take_steps() -> None:
    *medians, seconds, size = ranks.measure(2, add_up_and_take_steps)
    assert len(medians) == len(ranks.SIZES)
    assert all(0 < median < 10 for median in medians)
    assert 0 < seconds < 10
    assert size > 4 * 10_000
