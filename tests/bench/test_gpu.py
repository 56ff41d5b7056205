"""Sections of the benchmark on a GPU that need no kernels, here on the CPU."""

import pytest
import torch

from bench.gpu import compiled_against_eager, training_steps

CPU = torch.device("cpu")


def test_training_steps_in_a_process_of_their_own() -> None:
    found = training_steps("configs/quickstart.yaml", "torch:highest:eager", CPU, batch=1, steps=1)
    assert found["ok"]
    assert found["epoch_seconds"] == 421 * found["step_seconds"] > 0
    assert found["peak_memory_gib"] > 0
    assert found["target"] is None


def test_a_step_that_fails_says_why() -> None:
    found = training_steps("configs/none.yaml", "torch", CPU)
    assert not found["ok"]
    assert "configs/none.yaml" in found["error"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_the_model_compiles_with_operators_that_are_asked_for_kernels(combiner: str) -> None:
    """In one graph, as on a GPU; here they answer in plain torch."""
    assert compiled_against_eager(CPU, combiner)["ok"]
