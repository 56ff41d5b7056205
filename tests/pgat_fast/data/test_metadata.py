"""The note beside a data file gives its base price, and is ignored if it has the hash of another content."""

import json
import logging
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from pgat_fast import load_config
from pgat_fast.data.build import build_file
from pgat_fast.data.load import load_splits
from pgat_fast.data.metadata import note_path, read_note, resolve_base_price
from pgat_fast.data.prices import sp500_prices
from pgat_fast.data.table import Table, read_table
from pgat_fast.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return build_file(tmp_path / "built.csv", rows=40).path


def loaded(tiny: list[str], path: Path, *settings: str) -> Table:
    config = load_config(None, [*tiny, f"data.path={path}", *settings])
    return load_splits(config.data, config.model, CPU)[0]


def test_note_describes_data_file(built: Path) -> None:
    table = read_table(built)
    note = read_note(table)
    assert note is not None
    assert (note.sha256, note.source, note.targets, note.rows) == (table.sha256, "sp500", "returns", 40)
    assert (note.first_date, note.last_date) == (date(2015, 11, 4), date(2015, 12, 31))
    assert note.base_price == sp500_prices()["close"].iloc[-41]


def test_rebuild_writes_identical_note_without_folder_name(tmp_path: Path) -> None:
    prices = tmp_path / "mine.csv"
    prices.write_text("date,open,high,low,close\n2020-01-02,10,12,9,11\n2020-01-03,11,13,10,12\n2020-01-06,1,2,1,2\n")
    notes = [note_path(build_file(tmp_path / folder / "out.csv", prices).path).read_bytes() for folder in "ab"]
    assert notes[0] == notes[1]
    assert json.loads(notes[0])["source"] == "mine.csv"
    assert json.loads(notes[0])["base_price"] == 11


def test_closes_chained_from_noted_price_equal_source(tiny: list[str], built: Path) -> None:
    table = loaded(tiny, built)
    closes = table.base_price * np.exp(np.cumsum(table.values[:, table.columns.index("log_Close")]))
    # The file has ten significant digits, and forty of its returns are added up.
    np.testing.assert_allclose(closes, sp500_prices()["close"].iloc[-40:], rtol=1e-9)


def test_base_price_setting_overrides_note(tiny: list[str], built: Path) -> None:
    assert loaded(tiny, built, "data.base_price=7").base_price == 7


def test_unknown_base_price_is_one_and_logged_once_for_returns(
    tiny: list[str], built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note_path(built).unlink()
    with caplog.at_level(logging.INFO, logger="pgat_fast.data.metadata"):
        assert loaded(tiny, built).base_price == 1
        assert resolve_base_price(None, None, "levels") == 1
    (message,) = caplog.messages
    assert message.startswith("prices are relative to the close before the first row, which is unknown")


def test_note_with_other_hash_is_ignored_with_warning(
    tiny: list[str], built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = built.read_text().splitlines()
    built.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    assert loaded(tiny, built).base_price == 1
    assert "built.csv.note.json: ignored, because the data file has changed" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe{", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"[" * 60_000, "recursion limit"),
        (b" " * 70_000, "larger than 64 KiB"),
        ({"format": "pgat-fast note"}, "format: "),
        ({"version": 2}, "version: "),
        ({"base_price": -1.0}, "base_price: "),
        ({"base_price": float("nan")}, "base_price: "),
        ({"base_price": "16.66"}, "base_price: "),
        ({"targets": "prices"}, "targets: "),
        ({"rows": True}, "rows: "),
        ({"first_date": "yesterday"}, "first_date: "),
        ({"sha256": None}, "sha256: "),
    ],
)
def test_invalid_note_is_ignored_with_warning_that_names_the_fault(
    built: Path, caplog: pytest.LogCaptureFixture, content: bytes | dict[str, object], message: str
) -> None:
    path = note_path(built)
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    assert read_note(read_table(built)) is None
    assert "built.csv.note.json: ignored" in caplog.text
    assert message in caplog.text


def test_directory_at_note_path_is_ignored_with_warning(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    note_path(built).unlink()
    note_path(built).mkdir()
    assert read_note(read_table(built)) is None
    assert "this is a directory" in caplog.text


def test_table_without_file_has_no_note() -> None:
    assert read_note(Table(np.array(["2020-01-01"], "datetime64[D]"), np.zeros((1, 1)), ("a",))) is None


def test_note_determines_target_kind(tiny: list[str], tmp_path: Path) -> None:
    # Prices near 1: their logarithms are as small as returns.
    days = np.datetime64("2015-01-01") + np.arange(60)
    closes = np.exp(0.01 * np.random.default_rng(3).normal(size=60))
    rows = [f"{day},{close},{close},{close},{close}" for day, close in zip(days, closes, strict=True)]
    (tmp_path / "prices.csv").write_text("\n".join(["date,open,high,low,close", *rows, ""]))
    path = build_file(tmp_path / "levels.csv", tmp_path / "prices.csv", "levels").path
    with pytest.raises(ConfigError, match=r"as `data build` noted beside the file: set data\.target_kind to levels"):
        loaded(tiny, path)
    note_path(path).unlink()
    loaded(tiny, path)


def test_table_hash_depends_on_file_content(built: Path) -> None:
    before = read_table(built).sha256
    built.write_bytes(built.read_bytes() + b"\n")
    assert len(before) == 64
    assert read_table(built).sha256 != before
