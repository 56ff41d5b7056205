"""A training run: what it computes, what it writes, how it fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pgat_fast import build_model, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.errors import BackendError, CheckpointError, ConfigError, DataError, TrainingError
from pgat_fast.evaluation.evaluate import evaluate_split
from pgat_fast.training.results import summary
from pgat_fast.training.trainer import clip_gradients, train
from pgat_fast.training.weights import load_weights


def run(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train into `folder`, which must not exist yet."""
    config = load_config(None, [*overrides, f"run.output={folder.parent}", f"run.name={folder.name}"])
    written, results = train(config, progress=False)
    assert written == folder
    return results


@pytest.fixture
def learning_rates() -> Iterator[list[float]]:
    """The learning rate at every optimizer step taken while the test runs."""
    seen: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    yield seen
    hook.remove()


def test_a_run_writes_its_results_its_settings_and_its_best_weights(tiny: list[str], tmp_path: Path) -> None:
    results = run(tiny, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"results.json", "best.safetensors", "config.yaml"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config == load_config(None, [*tiny, f"run.output={tmp_path}", "run.name=run"])
    assert results["data"]["windows"] == {"train": 20, "validation": 5, "test": 6}
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [5, 5]
    assert set(results["test"]["price"]["skill"]) == {"last_value", "zero_return", "drift"}

    model = build_model(config)
    load_weights(tmp_path / "run" / "best.safetensors", model)
    _, splits = load_splits(config.data, config.model, torch.device("cpu"))
    again = evaluate_split(model, splits.validation, 3, "independent").loss
    assert again == pytest.approx(results["best_validation_loss"], rel=1e-6)  # float32 sums in another order
    assert results["best_validation_loss"] == min(epoch["validation_loss"] for epoch in results["epochs"])
    for line in ("zero_return", "drift", "last_value", "model skill"):
        assert line in summary(results)


def test_the_same_seed_gives_the_same_run_and_another_one_another(tiny: list[str], tmp_path: Path) -> None:
    def weights_and_losses(name: str, *more: str) -> tuple[bytes, list[float]]:
        results = run([*tiny, *more], tmp_path / name)
        # The configuration beside the tensors holds the name of the run: compare the tensors alone.
        tensors = load_file(tmp_path / name / "best.safetensors")
        content = b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))
        return content, [epoch["train_loss"] for epoch in results["epochs"]]

    first = weights_and_losses("first")
    assert weights_and_losses("second") == first
    other = weights_and_losses("third", "training.seed=7")
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_every_step_has_the_learning_rate_of_its_own_epoch(
    tiny: list[str], tmp_path: Path, learning_rates: list[float]
) -> None:
    settings = ["training.epochs=3", "training.warmup_epochs=2", "training.learning_rate=0.004"]
    results = run([*tiny, *settings], tmp_path / "run")
    assert learning_rates == pytest.approx([0.002] * 5 + [0.004] * 10)
    assert [epoch["learning_rate"] for epoch in results["epochs"]] == pytest.approx([0.002, 0.004, 0.004])


def test_accumulated_batches_step_like_one_large_batch(tiny: list[str], tmp_path: Path) -> None:
    # Without the celestial graph there is no dropout but `dropout`: the two runs draw nothing.
    inputs = ["use_celestial_graph=false", "data.inputs=log_Open,log_High,log_Low,log_Close,time_delta"]
    sizes = ["enc_in=5", "dec_in=5", "dropout=0", "training.max_steps=1", "training.clip_grad_norm=null"]
    gradients: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append([parameter.grad.clone() for parameter in parameters])

    hook = register_optimizer_step_pre_hook(keep)
    try:
        run([*tiny, *inputs, *sizes, "training.batch_size=8"], tmp_path / "large")
        run([*tiny, *inputs, *sizes, "training.gradient_accumulation_steps=2"], tmp_path / "accumulated")
    finally:
        hook.remove()
    large, accumulated = gradients
    scale = max(gradient.abs().max() for gradient in large)
    for one, two in zip(large, accumulated, strict=True):
        assert (one - two).abs().max() < 1e-4 * scale  # float32, behind row sums near zero


def test_the_last_cycle_of_an_epoch_counts_what_it_holds(
    tiny: list[str], tmp_path: Path, learning_rates: list[float]
) -> None:
    # 20 windows, 5 batches: cycles of 2, 2 and 1.
    results = run([*tiny, "training.gradient_accumulation_steps=2"], tmp_path / "run")
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [3, 3]
    assert len(learning_rates) == 6


def test_max_steps_ends_the_run_after_so_many_steps(
    tiny: list[str], tmp_path: Path, learning_rates: list[float]
) -> None:
    results = run([*tiny, "training.epochs=9", "training.max_steps=7"], tmp_path / "run")
    assert len(learning_rates) == 7
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [5, 2]


def test_patience_ends_a_run_that_gets_no_better(tiny: list[str], tmp_path: Path) -> None:
    # At this rate the second epoch is worse than the first.
    settings = ["training.epochs=9", "training.patience=1", "training.learning_rate=3", "training.lr_schedule=constant"]
    results = run([*tiny, *settings, "training.seed=1"], tmp_path / "run")
    assert len(results["epochs"]) == results["best_epoch"] + 1


def test_all_of_the_optional_parts_train_together(tiny: list[str], tmp_path: Path) -> None:
    parts = ["use_mixture_decoder=true", "use_stochastic_learner=true", "use_hierarchical_mapping=true"]
    more = ["combiner=hierarchical", "celestial_fusion_layers=1", "graph_processing=attention", "e_layers=1"]
    results = run([*tiny, *parts, *more, "decoder_future=known", "training.max_steps=2"], tmp_path / "run")
    assert results["test"]["scaled"]["model"]["overall"]["rmse"] < 100


def test_any_five_columns_train_without_the_celestial_graph(tiny: list[str], tmp_path: Path) -> None:
    columns = "log_Open,log_High,log_Low,log_Close,time_delta"
    sizes = ["enc_in=5", "dec_in=5", "n_heads=1", "training.max_steps=2"]
    results = run([*tiny, "use_celestial_graph=false", f"data.inputs={columns}", *sizes], tmp_path / "run")
    assert results["test"]["price"] is not None


def test_a_gradient_that_is_not_finite_stops_before_the_step(tiny: list[str], tmp_path: Path) -> None:
    before: list[torch.Tensor] = []
    settings = ["training.learning_rate=1e30", "training.lr_schedule=constant"]

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        before[:] = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    hook = register_optimizer_step_post_hook(keep)
    try:
        with pytest.raises(TrainingError, match=r"epoch 1, step 2: the gradient is not finite .*learning_rate"):
            run([*tiny, *settings], tmp_path / "run")
    finally:
        hook.remove()
    assert before, "the first step was taken"
    assert all(parameter.isfinite().all() for parameter in before)
    assert not (tmp_path / "run" / "results.json").exists()


def test_clipping_scales_all_gradients_by_one_factor() -> None:
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    clip_gradients(layer, 1.0, where="here", loss=torch.tensor(0.0))
    assert torch.allclose(layer.weight.grad, torch.tensor([[0.6, 0.0]]))
    assert torch.allclose(layer.bias.grad, torch.tensor([0.8]))
    clip_gradients(layer, 5.0, where="here", loss=torch.tensor(0.0))
    assert torch.allclose(layer.bias.grad, torch.tensor([0.8])), "a norm below the limit is left alone"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.path=nowhere.csv"], DataError, r"nowhere.csv.*does not exist"),
        (["model.seq_len=250"], DataError, r"too few.*at least"),
        (["training.batch_size=21"], DataError, r"20 windows do not fill one batch of 21"),
        (["data.rows=41"], ConfigError, r"data.rows is 41, but .* has 40 rows"),
        (["data.targets=log_Open,log_High,log_Low,volume"], DataError, r"volume"),
        (["run.device=cuda:9"], BackendError, r"cuda:9"),
        (["run.backend=triton"], BackendError, r"triton"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    tiny: list[str], tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run([*tiny, *overrides], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_levels_that_are_called_returns_are_refused(tmp_path: Path, tiny: list[str]) -> None:
    from pgat_fast.data.build import build_file

    build_file(tmp_path / "levels.csv", targets="levels", rows=40)
    levels = [*tiny, f"data.path={tmp_path / 'levels.csv'}"]
    with pytest.raises(ConfigError, match=r"set data.target_kind to levels"):
        run(levels, tmp_path / "wrong")
    results = run([*levels, "data.target_kind=levels", "training.max_steps=1"], tmp_path / "right")
    assert results["test"]["price"]["zero_return"]["overall"]["mape"] < 0.05


@pytest.mark.parametrize("damage", ["missing", "cut", "no weights", "another model"])
def test_weights_that_cannot_be_loaded_are_named(tiny: list[str], tmp_path: Path, damage: str) -> None:
    run([*tiny, "training.max_steps=1"], tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    model = build_model(load_config(None, [*tiny, *(["model.d_model=26"] if damage == "another model" else [])]))
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "no weights":
            path.write_text("these are not weights")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        load_weights(path, model)
