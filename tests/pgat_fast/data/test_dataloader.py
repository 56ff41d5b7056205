"""The DataLoader yields the same windows as `Windows.batch`, bit for bit."""

import numpy as np
import pytest
import torch

from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.dataloader import WindowDataset, make_loader
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Batch, Windows, batch_indices, prepare

BATCH = 8


def make_windows(decoder_future: str = "known", device: str = "cpu") -> Windows:
    values = np.random.default_rng(1).normal(size=(123, len(COLUMNS)))
    table = Table(np.datetime64("2020-01-01") + np.arange(123), values, COLUMNS)
    splits = prepare(
        table, targets=TARGETS, seq_len=20, label_len=10, pred_len=5, validation_length=20, test_length=20,
        decoder_future=decoder_future, device=device,
    )  # fmt: skip
    return splits.train


def equal(batch: Batch, other: Batch) -> bool:
    return all(torch.equal(*pair) for pair in zip(batch, other, strict=True))


@pytest.mark.parametrize("decoder_future", ["zeros", "known"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_windows_batch(workers: int, decoder_future: str) -> None:
    windows = make_windows(decoder_future)
    loader = make_loader(WindowDataset(windows), BATCH, shuffle=False, seed=1, num_workers=workers)
    expected = [windows.batch(indices) for indices in batch_indices(len(windows), BATCH, drop_last=False)]
    served = list(loader)
    assert [len(batch.y) for batch in served] == [BATCH] * 7 + [3]
    assert all(isinstance(batch, Batch) for batch in served)
    assert all(equal(*pair) for pair in zip(served, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffled_batches_equal_windows_batch_in_each_epoch(workers: int) -> None:
    windows = make_windows()
    loader = make_loader(WindowDataset(windows), BATCH, shuffle=True, seed=1, epoch=3, num_workers=workers)
    for epoch in (3, 4, 5):
        order = batch_indices(len(windows), BATCH, seed=1, epoch=epoch, drop_last=True)
        served = list(loader)
        assert len(served) == len(loader) == 7
        assert all(equal(batch, windows.batch(indices)) for batch, indices in zip(served, order, strict=True))


def test_item_is_one_window() -> None:
    windows = make_windows()
    dataset = WindowDataset(windows)
    assert len(dataset) == len(windows)
    for index in (0, len(windows) - 1):
        item = dataset[index]
        assert [list(tensor.shape) for tensor in item] == [[20, 118], [20, 4], [15, 118], [15, 4], [5, 4]]
        batch = windows.batch(torch.tensor([index]))
        assert equal(item, Batch(*(tensor[0] for tensor in batch)))
    for index in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"window {index} does not exist"):
            dataset[index]


def test_loader_uses_production_settings() -> None:
    dataset = WindowDataset(make_windows())
    training = make_loader(dataset, BATCH, shuffle=True, seed=1, num_workers=2, prefetch_factor=4)
    assert training.drop_last
    assert training.persistent_workers
    assert training.prefetch_factor == 4
    assert training.generator is not None
    assert training.generator.initial_seed() == 1
    assert training.pin_memory == torch.cuda.is_available()
    validation = make_loader(dataset, BATCH, shuffle=False, seed=1)
    assert not validation.drop_last
    assert validation.num_workers == 0
    assert not validation.persistent_workers
