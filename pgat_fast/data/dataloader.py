"""The same windows in the same order as a torch Dataset and DataLoader, for training loops that expect these.

Slower than `Windows.batch`: every window is cut separately, collated, and copied to the device.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from pgat_fast.data.windows import Batch, Windows, sample_order
from pgat_fast.errors import ConfigError


class WindowDataset(Dataset[Batch]):
    """Dataset of one window per item: the five tensors of `Batch` without the first axis, on the CPU."""

    def __init__(self, windows: Windows) -> None:
        self.count = len(windows)
        self.seq_len, self.label_len, self.pred_len = windows.seq_len, windows.label_len, windows.pred_len
        self.values, self.marks, self.targets = windows.values.cpu(), windows.marks.cpu(), windows.targets.cpu()
        self.unknown_ahead = None if windows.unknown_ahead is None else windows.unknown_ahead.cpu()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        """Return the window `index`. Its `x_dec` is a copy; the other tensors are views of the table."""
        if not 0 <= index < self.count:
            raise IndexError(f"window {index} does not exist: there are {self.count}")
        present = index + self.seq_len
        past, end = present - self.label_len, present + self.pred_len
        x_dec = self.values[past:end].clone()
        x_dec[self.label_len :].masked_fill_(
            torch.tensor(True) if self.unknown_ahead is None else self.unknown_ahead, 0.0
        )
        return Batch(
            x_enc=self.values[index:present],
            x_mark_enc=self.marks[index:present],
            x_dec=x_dec,
            x_mark_dec=self.marks[past:end],
            y=self.targets[present:end],
        )


class EpochSampler(Sampler[int]):
    """Sampler of `sample_order`; each pass is the next epoch.

    Torch's RandomSampler draws from a generator that the loader uses too, so that the order of the second epoch
    depends on the number of workers.
    """

    def __init__(self, n_windows: int, seed: int, epoch: int = 0) -> None:
        self.n_windows, self.seed, self.epoch = n_windows, seed, epoch

    def __len__(self) -> int:
        return self.n_windows

    def __iter__(self) -> Iterator[int]:
        order: list[int] = sample_order(self.n_windows, self.seed, self.epoch).tolist()
        self.epoch += 1
        return iter(order)


def make_loader(
    dataset: WindowDataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    epoch: int = 0,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    drop_last: bool | None = None,
) -> DataLoader[Batch]:
    """Return a DataLoader of `Batch`, with pinned memory if there is a CUDA device.

    With `shuffle`, pass k yields the batches of `batch_indices(..., seed=seed, epoch=epoch + k)`, whatever the
    number of workers; otherwise batches are chronological. `drop_last` follows `shuffle` by default: training
    drops the last partial batch, validation and test keep it. Workers stay alive between epochs; the default is
    none, because for a table of this size they cost more than they save.

    Usage: `read_table`, `prepare` (or `pgat_fast.data.load.load_splits`), `WindowDataset(splits.train)`.
    """
    if not isinstance(dataset, WindowDataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}: pass WindowDataset(windows)")
    drop_last = shuffle if drop_last is None else drop_last
    if drop_last and len(dataset) < batch_size:
        raise ConfigError(f"{len(dataset)} windows do not fill one batch of {batch_size}: lower batch_size")
    generator = torch.Generator()
    generator.manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed, epoch) if shuffle else SequentialSampler(dataset),
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        generator=generator,
    )
