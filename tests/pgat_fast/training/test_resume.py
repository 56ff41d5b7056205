"""Interrupted and resumed runs equal uninterrupted ones bitwise: losses, weights, optimizer and generator states."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from pgat_fast import load_config
from pgat_fast.errors import CheckpointError, ConfigError, StopRequested
from pgat_fast.training import setup
from pgat_fast.training.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint
from pgat_fast.training.run import train
from pgat_fast.training.run_folder import read_status
from tests.pgat_fast.training.checkpoints import convert_to_schema_1
from tests.pgat_fast.training.forecaster import Forecaster
from tests.pgat_fast.training.runs import StopAt, assert_same, interrupted, newest, outcome, run

ACCUMULATE = ["training.gradient_accumulation_steps=2"]
"""Five batches per epoch, in steps of two, two and one."""

FIRST_VALIDATION = 6
"""Stop checks until the first checkpoint: one at the start, one per window of the validation before training."""

EVALUATION = 40
"""Stop checks of the final evaluation: validation and test windows, five scenarios. One in seven is tested."""


@pytest.fixture(scope="module")
def whole(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcome of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run([*tiny_settings, *ACCUMULATE], folder)
    return outcome(folder)


@pytest.mark.slow  # some fifty runs
@pytest.mark.timeout(1200)
def test_run_stopped_at_any_check_resumes_exactly(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small forecaster replaces the model, since saving and resuming do not depend on it."""
    monkeypatch.setattr(setup, "build_model", Forecaster)
    stop = StopAt()
    run([*tiny, *ACCUMULATE], tmp_path / "whole", stop=stop)
    expected, check_count = outcome(tmp_path / "whole"), stop.asked
    assert check_count > EVALUATION + 20, "before training, in every batch, in validation and evaluation"
    numbers = [*range(1, check_count - EVALUATION), *range(check_count - EVALUATION, check_count + 1, 7)]
    for number in numbers:
        folder = tmp_path / f"stopped-{number}"
        if number <= FIRST_VALIDATION:  # no checkpoint was saved, so there is nothing to resume
            with pytest.raises(StopRequested):
                run([*tiny, *ACCUMULATE], folder, stop=StopAt(number))
            assert not (folder / "checkpoints").exists()
            continue
        interrupted([*tiny, *ACCUMULATE], folder, [number])
        assert_same(outcome(folder), expected)


@pytest.mark.slow  # whole runs
def test_three_interruptions_in_one_epoch_resume_exactly(
    tiny: list[str], tmp_path: Path, whole: dict[str, Any]
) -> None:
    # A resumed process makes one stop check at its start, then one per batch.
    results = interrupted([*tiny, *ACCUMULATE], tmp_path / "run", [9, 4, 2, 4])
    assert results["resumes"] == 4
    assert_same(outcome(tmp_path / "run"), whole)


@pytest.mark.slow  # three runs each
@pytest.mark.parametrize(
    "settings",
    [
        ["run.precision=bf16"],
        ["run.precision=fp16", "training.learning_rate=1e-5"],
        ["training.lr_schedule=plateau", "training.lr_patience=1", "training.epochs=3"],
        ["model.use_stochastic_learner=true", "model.use_mixture_decoder=true", "model.use_hierarchical_mapping=true"],
        ["model.combiner=hierarchical", "model.celestial_fusion_layers=1", "data.decoder_future=known"],
        ["training.patience=1", "training.epochs=5", "training.learning_rate=0.1", "training.lr_schedule=constant"],
        ["training.max_steps=7", "training.epochs=9"],
    ],
    ids=lambda settings: settings[0],
)
def test_every_kind_of_training_resumes_exactly(tiny: list[str], tmp_path: Path, settings: list[str]) -> None:
    run([*tiny, *ACCUMULATE, *settings], tmp_path / "whole")
    interrupted([*tiny, *ACCUMULATE, *settings], tmp_path / "stopped", [9, 5])
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))


@pytest.mark.slow  # whole runs
def test_equal_seeds_give_bitwise_equal_runs(tiny: list[str], tmp_path: Path, whole: dict[str, Any]) -> None:
    run([*tiny, *ACCUMULATE], tmp_path / "again")
    assert_same(outcome(tmp_path / "again"), whole)
    other_results = run([*tiny, *ACCUMULATE, "training.seed=7"], tmp_path / "other")
    assert other_results["train_losses"] != whole["results"]["train_losses"]
    other = outcome(tmp_path / "other")
    assert other["weights"] != whole["weights"]


@pytest.mark.slow  # whole runs
def test_run_ended_by_limit_within_epoch_resumes_exactly(
    tiny: list[str], tmp_path: Path, whole: dict[str, Any]
) -> None:
    """A run that ends early is evaluated; with a higher limit it continues as if it had never ended."""
    first_results = run([*tiny, *ACCUMULATE, "training.max_steps=4"], tmp_path / "run")
    assert [epoch["complete"] for epoch in first_results["epochs"]] == [True, False]
    assert first_results["training_ended"] == "training.max_steps 4 reached"
    assert (tmp_path / "run" / "checkpoints" / first_results["checkpoints"]["best"]).is_dir()
    run([*tiny, *ACCUMULATE], tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


@pytest.mark.slow  # whole runs
def test_max_minutes_ends_training_and_run_is_evaluated(tiny: list[str], tmp_path: Path) -> None:
    results = run([*tiny, "training.epochs=1000", "training.max_minutes=0.02"], tmp_path / "run")
    assert results["training_ended"] == "training.max_minutes 0.02 reached"
    assert 0 < len(results["epochs"]) < 1000
    assert results["test"]["scaled"]["model"]["overall"]["rmse"] > 0


@pytest.mark.slow  # whole runs
def test_finished_run_continues_with_more_epochs(tiny: list[str], tmp_path: Path) -> None:
    constant = ["training.lr_schedule=constant"]
    first_results = run([*tiny, *constant, "training.epochs=1"], tmp_path / "run")
    run([*tiny, *constant, "training.epochs=2"], tmp_path / "run", resume=tmp_path / "run")
    run([*tiny, *constant, "training.epochs=2"], tmp_path / "whole")
    earlier_results = json.loads((tmp_path / "run" / "earlier-results" / "results.json").read_bytes())
    assert earlier_results == first_results, (
        "nothing is lost, and nothing old is taken for the results of the longer run"
    )
    continued, uninterrupted = outcome(tmp_path / "run"), outcome(tmp_path / "whole")
    assert_same(continued, uninterrupted)


@pytest.mark.slow  # whole runs
def test_resuming_finished_run_changes_nothing(tiny: list[str], tmp_path: Path) -> None:
    run(tiny, tmp_path / "run")
    before = outcome(tmp_path / "run")
    run(tiny, tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), before)


@pytest.mark.slow  # whole runs
def test_older_checkpoint_can_be_resumed_and_newer_ones_are_kept(tiny: list[str], tmp_path: Path) -> None:
    run([*tiny, "run.keep_checkpoints=9"], tmp_path / "run")
    before = outcome(tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    names = [path.name for path in list_checkpoints(root)]
    assert names == ["epoch-0000-step-00000000", "epoch-0001-step-00000005", "epoch-0002-step-00000010"]
    run([*tiny, "run.keep_checkpoints=9"], tmp_path / "run", resume=root / names[1])
    assert_same(outcome(tmp_path / "run"), before)
    assert (root / "superseded" / names[2]).is_dir()


@pytest.mark.parametrize("damage", ["a flipped bit", pytest.param("a missing file", marks=pytest.mark.slow)])
def test_damaged_newest_checkpoint_is_skipped_with_warning(
    tiny: list[str], tmp_path: Path, whole: dict[str, Any], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StopRequested):
        run([*tiny, *ACCUMULATE], tmp_path / "run", stop=StopAt(17))
    newest_path = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    file = newest_path / "training.safetensors"
    if damage == "a flipped bit":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    else:
        file.unlink()
    run([*tiny, *ACCUMULATE], tmp_path / "run", resume=tmp_path / "run")
    assert any(str(newest_path) in record.message for record in caplog.records if record.levelno >= logging.WARNING)
    assert_same(outcome(tmp_path / "run"), whole)


def test_run_of_earlier_version_resumes_exactly(tiny: list[str], tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(StopRequested):
        run([*tiny, *ACCUMULATE], folder, stop=StopAt(17))
    for path in list_checkpoints(folder / "checkpoints"):
        convert_to_schema_1(path)
        assert (path / "training.pt").exists()
    run([*tiny, *ACCUMULATE], folder, resume=folder)
    assert not (folder / "checkpoints" / "superseded").exists()
    assert_same(outcome(folder), whole)


def test_run_without_good_checkpoint_cannot_be_resumed(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny, tmp_path / "run", stop=StopAt(11))
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no readable checkpoint: start a new run"):
        run(tiny, tmp_path / "run", resume=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.dropout=0.2"], r"model\.dropout was 0\.1, now 0\.2"),
        (["data.test_length=6"], r"data\.test_length was 7, now 6"),
        (["training.batch_size=5"], r"training\.batch_size was 4, now 5"),
        (["training.seed=1", "model.freq=h"], r"model\.freq was 'd', now 'h'; training\.seed was 2024, now 1"),
    ],
)
def test_resuming_with_other_model_data_or_batches_is_rejected(
    tiny: list[str], tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(StopRequested):
        run(tiny, tmp_path / "run", stop=StopAt(11))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        run([*tiny, *settings], tmp_path / "run", resume=tmp_path / "run")
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= {"train.log"}


@pytest.mark.slow  # whole runs
def test_resuming_with_other_data_is_rejected_and_with_moved_data_allowed(
    tiny: list[str], tmp_path: Path, data_file: Path
) -> None:
    moved = tmp_path / "moved.csv"
    moved.write_bytes(data_file.read_bytes())
    with pytest.raises(StopRequested):
        run(tiny, tmp_path / "run", stop=StopAt(11))
    run([*tiny, f"data.path={moved}", "training.max_steps=2"], tmp_path / "run", resume=tmp_path / "run")
    text = moved.read_text()
    moved.write_text(text.replace("\n1", "\n2", 1) if "\n1" in text else text.replace("\n2", "\n1", 1))
    moved.write_text("\n".join([*text.splitlines()[:-1], ""]))
    with pytest.raises(ConfigError, match=r"another content of the data file"):
        run([*tiny, f"data.path={moved}"], tmp_path / "run", resume=tmp_path / "run")


@pytest.mark.slow  # whole runs
def test_resuming_with_other_settings_of_training_or_computation_is_logged(
    tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run([*tiny, "training.epochs=1"], tmp_path / "run")
    changed_settings = [
        "training.learning_rate=0.01", "run.precision=bf16", "run.exact_dropout=true", "run.combiner_chunk=2",
        "run.compile=off",
    ]  # fmt: skip
    results = run([*tiny, *changed_settings], tmp_path / "run", resume=tmp_path / "run")
    assert "training.learning_rate is 0.01, was 0.001: results will differ from an uninterrupted run" in caplog.messages
    assert "run.precision is bf16, was auto: results will differ from an uninterrupted run" in caplog.messages
    assert "run.exact_dropout is True, was False: results will differ from an uninterrupted run" in caplog.messages
    assert "run.combiner_chunk is 2, was auto: results will differ by rounding" in caplog.messages
    assert "run.compile is off, was auto: results will differ by rounding" in caplog.messages
    assert (results["precision"], results["compiled"]) == ("bf16", False)


@pytest.mark.slow  # whole runs
def test_auto_keeps_the_precision_that_the_run_began_with(
    tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run([*tiny, "training.max_steps=1", "run.precision=bf16"], tmp_path / "run")
    results = run([*tiny, "training.max_steps=2", "run.precision=auto"], tmp_path / "run", resume=tmp_path / "run")
    assert results["precision"] == "bf16"
    assert "run.precision is" not in caplog.text


@pytest.mark.slow  # whole runs
@pytest.mark.parametrize("kept", [True, False])
def test_run_with_old_precision_setting_resumes(
    tiny: list[str], tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of such a run contain `training.mixed_precision`."""
    folder, settings = tmp_path / "run", [*tiny, *ACCUMULATE, "run.precision=bf16"]
    run(settings, tmp_path / "whole")
    with pytest.raises(StopRequested):
        run(settings, folder, stop=StopAt(9))
    new_keys = ("precision", "compile", "combiner_chunk", "exact_dropout")
    path = list_checkpoints(folder / "checkpoints")[-1]
    checkpoint = read_checkpoint(path)
    checkpoint.about["config"]["run"] = {
        key: value for key, value in checkpoint.about["config"]["run"].items() if key not in new_keys
    }
    checkpoint.about["config"]["training"]["mixed_precision"] = "bf16"
    del checkpoint.about["compiled"]
    shutil.rmtree(path)
    save_checkpoint(path.parent, path.name, checkpoint)
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    lines = [line for line in lines if line.strip().split(":")[0] not in new_keys]
    lines.insert(lines.index("training:\n") + 1, "  mixed_precision: bf16\n")
    (folder / "config.yaml").write_text("".join(lines))

    config = load_config(folder / "config.yaml", [] if kept else ["run.precision=highest"])
    train(config, resume=folder, progress=False)
    message = "run.precision is highest, was bf16: results will differ from an uninterrupted run"
    assert (message in caplog.messages) is not kept
    if kept:
        assert_same(outcome(folder), outcome(tmp_path / "whole"))


@pytest.mark.slow  # whole runs
def test_leftovers_of_killed_process_are_removed(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny, tmp_path / "run", stop=StopAt(11))
    root = tmp_path / "run" / "checkpoints"
    orphans = [root / ".epoch-0001-step-00000009.4194304.tmp", tmp_path / "run" / ".results.json.4194304.tmp"]
    orphans[0].mkdir()
    (orphans[0] / "model.safetensors").write_bytes(b"half of it")
    orphans[1].write_bytes(b"half of it")
    run(tiny, tmp_path / "run", resume=tmp_path / "run")
    assert not any(path.exists() for path in orphans)


@pytest.mark.slow  # whole runs
def test_stopped_run_resumes_from_its_folder_and_status_shows_both(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(tiny, tmp_path / "run", stop=StopAt(11))
    stopped = read_status(tmp_path / "run")
    assert (stopped["state"], stopped["stage"], stopped["epoch"]) == ("stopped", "train", 1)
    assert stopped["reason"] == "stopped at question 11"
    config = load_config(tmp_path / "run" / "config.yaml")
    folder, results = train(config, resume=tmp_path / "run", progress=False)
    assert folder == tmp_path / "run"
    finished = read_status(folder)
    assert (finished["state"], finished["exit_code"], finished["reason"]) == ("finished", 0, "all 2 epochs are done")
    assert newest(folder).about["epoch"] == 2
    assert (len(results["epochs"]), results["resumes"]) == (2, 1)
