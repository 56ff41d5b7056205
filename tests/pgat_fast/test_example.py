"""The examples run unchanged."""

from pathlib import Path

import pytest

from examples import forecast, train
from examples.drop_in import main


def test_training_and_forecasting_examples_run(
    tiny: list[str], data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train.main([*tiny, "data.rows=null"])
    assert "drift: test RMSE" in capsys.readouterr().out
    table = forecast.main(str(folder), str(data_file))
    assert list(table["horizon"]) == [1, 2]
    assert "last close" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_drop_in_example_trains_saves_and_restores_its_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = main()
    assert before == after
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("step ")]
    assert len(losses) == 10
    assert min(losses[5:]) < losses[0]
    assert lines[-1] == f"loss before saving {before:.6f}, after loading {after:.6f}"
