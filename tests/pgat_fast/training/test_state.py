"""Progress of a run and states of random number generators: storing and restoring."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from pgat_fast.config.schema import TrainingConfig
from pgat_fast.training.rng import generator_states, restore_generators, seed_everything
from pgat_fast.training.state import Epoch, Progress, end_of_training, most_steps


def epoch(number: int, loss: float) -> Epoch:
    return Epoch(number, 1e-3, 5, 0, 1.0, loss, 2.0)


def after(*losses: float) -> Progress:
    progress = Progress()
    for number, loss in enumerate(losses):
        progress = replace(progress, epoch_steps=5, step=progress.step + 5).after_epoch(epoch(number + 1, loss))
    return progress


def test_progress_survives_round_trip_through_json() -> None:
    progress = replace(after(3.0, 2.0, 2.5), epoch_steps=3, peaks={"peak_process_gib": 1.5})
    content = json.loads(json.dumps(progress.to_dict()))
    assert Progress.from_dict(content) == progress
    assert content["cycle"] == 3, "the name in earlier checkpoints"


def test_checkpoint_names_sort_in_order_of_progress() -> None:
    snapshots = [
        Progress(),
        Progress(epoch_steps=5, step=5),
        after(1.0),
        after(1.0, 1.0),
        after(*[1.0] * 11),
    ]
    names = [progress.name for progress in snapshots]
    assert names == sorted(names)
    assert len(set(names)) == len(names), "before and after the validation of an epoch are two places"


def test_best_epoch_is_first_with_lowest_loss() -> None:
    progress = after(3.0, 2.0, 2.5, 2.0)
    assert (progress.best_epoch, progress.best_loss) == (2, 2.0)
    assert progress.best == "epoch-0002-step-00000010"
    assert progress.epoch_steps == 0


@pytest.mark.parametrize(
    ("settings", "losses", "why"),
    [
        ({"epochs": 3}, [3.0, 2.0], None),
        ({"epochs": 2}, [3.0, 2.0], "all 2 epochs are done"),
        ({"epochs": 9, "patience": 2}, [3.0, 2.0, 2.0, 2.1], "no better validation loss for 2 epochs"),
        ({"epochs": 9, "patience": 3}, [3.0, 2.0, 2.0, 2.1], None),
        ({"epochs": 9, "max_steps": 10}, [3.0, 2.0], "training.max_steps 10 reached"),
        ({"epochs": 9, "max_steps": 11}, [3.0, 2.0], None),
    ],
)
def test_training_ends_after_epochs_patience_or_steps(
    settings: dict[str, int], losses: list[float], why: str | None
) -> None:
    reason = end_of_training(after(*losses), TrainingConfig.model_validate(settings))
    assert reason is None if why is None else why in str(reason)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_restored_generators_continue_from_stored_state() -> None:
    seed_everything(5)
    draw()
    torch.randn(1)  # after an odd number of normals, generators keep a spare one
    np.random.randn()
    random.gauss(0, 1)
    states = generator_states()
    expected = draw(), random.gauss(0, 1), np.random.randn(), torch.randn(3).tolist()
    seed_everything(6)
    restore_generators(states)
    assert (draw(), random.gauss(0, 1), np.random.randn(), torch.randn(3).tolist()) == expected


def test_equal_seeds_give_equal_numbers_in_all_generators() -> None:
    seed_everything(2024)
    first = draw()
    seed_everything(2024)
    assert draw() == first
    seed_everything(2025)
    assert all(number != first_number for number, first_number in zip(draw(), first, strict=True))


def test_most_steps_respects_all_limits() -> None:
    settings = TrainingConfig(epochs=10, batch_size=4, gradient_accumulation_steps=3)
    assert most_steps(settings, 103, 1.0) == 10 * 9  # 25 batches make 8 steps of three, and one of one
    assert most_steps(settings.model_copy(update={"max_steps": 7}), 103, 1.0) == 7
    assert most_steps(settings.model_copy(update={"max_minutes": 1.0}), 103, 8.0) == 8
