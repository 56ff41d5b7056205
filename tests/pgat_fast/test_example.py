"""The example runs as it is printed."""

import pytest

from examples.swap_one_import import main


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
