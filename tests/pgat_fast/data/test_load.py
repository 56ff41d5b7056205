"""Loading selects columns by name, in whatever order the file has them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pgat_fast import load_config
from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.dataloader import WindowDataset, make_loader
from pgat_fast.data.load import load_splits
from pgat_fast.errors import ConfigError, DataError

CPU = torch.device("cpu")


@pytest.fixture
def shuffled(data_file: Path, tmp_path: Path) -> Path:
    """Write the data file with its columns in another order and an extra column."""
    frame = pd.read_csv(data_file, dtype=str)
    order = np.random.default_rng(0).permutation(frame.columns[1:])
    frame = frame[["date", *order]].assign(volume="5")
    frame.to_csv(tmp_path / "shuffled.csv", index=False)
    return tmp_path / "shuffled.csv"


@pytest.mark.parametrize("settings", [[], ["compatibility=original"], ["phase_edges=zero"]])
def test_columns_are_found_by_name(tiny: list[str], shuffled: Path, settings: list[str]) -> None:
    config = load_config(None, [*tiny, *settings])
    shuffled_config = load_config(None, [*tiny, *settings, f"data.path={shuffled}"])
    _, expected = load_splits(config.data, config.model, CPU)
    _, actual = load_splits(shuffled_config.data, shuffled_config.model, CPU)
    assert torch.equal(actual.train.values, expected.train.values)
    assert torch.equal(actual.test.targets, expected.test.targets)
    assert actual.input_scaler.columns == COLUMNS


def test_missing_column_is_named(tiny: list[str], data_file: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(data_file, dtype=str).drop(columns="log_Close")
    frame.to_csv(tmp_path / "short.csv", index=False)
    config = load_config(None, [*tiny, f"data.path={tmp_path / 'short.csv'}"])
    with pytest.raises(DataError, match=r"short\.csv.*log_Close"):
        load_splits(config.data, config.model, CPU)


def test_reordered_inputs_raise_with_celestial_graph(tiny: list[str]) -> None:
    names = ",".join(reversed(COLUMNS))
    config = load_config(None, [*tiny, f"data.inputs={names}"])
    with pytest.raises(ConfigError, match=r"data\.inputs"):
        load_splits(config.data, config.model, CPU)


def test_loader_without_full_batch_or_dataset_raises(tiny: list[str]) -> None:
    config = load_config(None, tiny)
    _, splits = load_splits(config.data, config.model, CPU)
    with pytest.raises(ConfigError, match=r"20 windows do not fill one batch of 21"):
        make_loader(WindowDataset(splits.train), 21, shuffle=True, seed=0)
    with pytest.raises(TypeError, match=r"WindowDataset\(windows\)"):
        make_loader(splits.train, 4, shuffle=True, seed=0)  # type: ignore[arg-type]
