"""Throughput of production batches: the gather on the device, and the DataLoader for comparison.

Batch 16, history 250, label 125, horizon 10, 118 inputs, 4 targets; one thread; 7,109 synthetic rows.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suite import median_seconds
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.dataloader import WindowDataset, make_loader
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Windows, batch_indices, prepare

ROWS, BATCH = 7109, 16


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def training_windows(decoder_future: str) -> Windows:
    values = np.random.default_rng(0).normal(size=(ROWS, len(COLUMNS)))
    table = Table(np.datetime64("1996-11-05") + np.arange(ROWS), values, COLUMNS)
    splits = prepare(
        table, targets=TARGETS, seq_len=250, label_len=125, pred_len=10, validation_length=50, test_length=50,
        decoder_future=decoder_future,
    )  # fmt: skip
    return splits.train


def measure(benchmark: BenchmarkFixture, serve: Callable[[], None], batches: int, rounds: int) -> None:
    benchmark.pedantic(serve, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["batches_per_second_median"] = batches / median_seconds(benchmark)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("decoder_future", ["zeros", "known"])
def test_windows_batch(benchmark: BenchmarkFixture, decoder_future: str) -> None:
    windows = training_windows(decoder_future)
    order = list(batch_indices(len(windows), BATCH, seed=1, drop_last=True))

    def serve() -> None:
        for indices in order:
            windows.batch(indices)

    measure(benchmark, serve, len(order), rounds=10)


@pytest.mark.usefixtures("one_thread")
def test_loader_without_workers(benchmark: BenchmarkFixture) -> None:
    loader = make_loader(WindowDataset(training_windows("zeros")), BATCH, shuffle=True, seed=1)

    def serve() -> None:
        for _ in loader:
            pass

    measure(benchmark, serve, len(loader), rounds=3)
