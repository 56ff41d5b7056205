"""What several devices cost: the formulas, a fit that finds what it was made of, and real processes that add up."""

import pytest

from bench import ranks
from bench.ranks import all_reduce_seconds, efficiencies, fit, loss_begins, on_gpus


def test_a_ring_moves_nearly_twice_the_bytes_and_one_has_nobody_to_tell() -> None:
    assert all_reduce_seconds(1, 1e9, 1.0, 1.0) == 0
    assert all_reduce_seconds(2, 100.0, 0.0, 10.0) == 10.0
    assert all_reduce_seconds(4, 100.0, 1.0, 10.0) == 6 + 15.0


def test_beyond_a_node_the_slower_link_counts() -> None:
    assert on_gpus(16, 1e8) > 8 * on_gpus(8, 1e8)


def test_efficiency_falls_with_devices_and_more_where_the_batch_is_divided() -> None:
    steps = {16: 0.16, 8: 0.09, 4: 0.05, 2: 0.03, 1: 0.02}
    rows = efficiencies(steps, 30_000_000)
    assert (rows[0]["weak"], rows[0]["strong"]) == (1, 1)
    weak = [row["weak"] for row in rows]
    assert weak == sorted(weak, reverse=True)
    assert all(row["strong"] < row["weak"] for row in rows[1:] if row["strong"] is not None)
    assert loss_begins(rows, "strong") == 2
    assert loss_begins(rows, "weak") is None


def test_the_fit_finds_what_it_was_made_of() -> None:
    made = [all_reduce_seconds(2, size, 1e-4, 2e9) for size in ranks.SIZES]
    seconds, bandwidth = fit(2, made)
    assert seconds == pytest.approx(1e-4)
    assert bandwidth == pytest.approx(2e9)


def test_processes_add_up() -> None:
    found = ranks.measure(2)
    assert len(found) == len(ranks.SIZES)
    assert all(0 < seconds < 10 for seconds in found)
