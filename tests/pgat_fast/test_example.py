"""The examples run as they are printed."""

from pathlib import Path

import pytest

from examples import forecast, train
from examples.drop_in import main


def test_a_model_is_trained_and_forecasts_from_python(
    tiny: list[str], data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train.main([*tiny, "data.rows=null"])
    assert "drift: test RMSE" in capsys.readouterr().out
    table = forecast.main(str(folder), str(data_file))
    assert list(table["horizon"]) == [1, 2]
    assert "last close" in capsys.readouterr().out


@pytest.mark.multiprocess
def test_a_script_with_one_import_swapped_trains_saves_and_finds_its_loss_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, after = main()
    assert before == after
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("step ")]
    assert len(losses) == 10
    assert min(losses[5:]) < losses[0]
    assert lines[-1] == f"loss before saving {before:.6f}, after loading {after:.6f}"
