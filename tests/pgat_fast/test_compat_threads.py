"""`compat.Model` called from several threads at once: each call is as if it were the only one."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from pgat_fast.compat import Model
from tests.pgat_fast.model.variants import SMALL, inputs_of, loss_of, tensors_of

THREADS = 4
BATCHED: dict[str, Any] = SMALL | {"combiner": "batched", "fusion_layers": 1, "seq_len": 5, "n_heads": 1, "d_model": 13}
KINDS: dict[str, dict[str, Any]] = {
    "batched": BATCHED,
    "batched, reference": BATCHED | {"backend": "reference"},
    "hierarchical mixture": SMALL | {"use_mixture_decoder": True, "graph_processing": "attention"},
}
Result = TypeVar("Result")


def model_of(settings: dict[str, Any] = BATCHED, seed: int = 1) -> Model:
    torch.manual_seed(seed)
    return Model(settings).eval()


def in_threads(function: Callable[[int], Result], calls: int) -> list[Result]:
    """Return the results of `function(0)`, `function(1)`, ..., called from `THREADS` threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, range(calls)))


def forecast(model: Model, seed: int) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(model(*inputs_of(model.settings, seed=seed % 8)))


def gradients(model: Model, seed: int) -> tuple[Tensor, ...]:
    """Return the gradients of the used parameters for inputs of their own."""
    dtype = next(model.parameters()).dtype
    loss = loss_of(model.settings, model(*inputs_of(model.settings, seed=seed, dtype=dtype)))
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return tuple(gradient for gradient in found if gradient is not None)


def all_equal(first: list[Any], second: list[Any]) -> bool:
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_of_threads_equal_sequential_ones(kind: str) -> None:
    model = model_of(KINDS[kind])
    expected = [forecast(model, seed) for seed in range(8)]
    calls = 100 if kind == "batched" else 16
    assert all_equal(in_threads(lambda seed: forecast(model, seed), calls), [expected[k % 8] for k in range(calls)])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_threads_equal_sequential_ones(kind: str) -> None:
    model = model_of(KINDS[kind]).double()
    expected = [gradients(model, seed) for seed in range(4)]
    assert all_equal(in_threads(lambda seed: gradients(model, seed), 4), expected)


def test_gradients_accumulate_from_all_threads() -> None:
    model = model_of().double()

    def step(seed: int) -> None:
        loss_of(model.settings, model(*inputs_of(model.settings, seed=seed, dtype=torch.float64))).backward()

    in_threads(step, 4)
    actual = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    for seed in range(4):
        step(seed)
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    # Sums in another order, of gradients that may cancel.
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9 * scale) for a, b in zip(actual, expected, strict=True))


def test_models_of_different_sizes_do_not_affect_each_other() -> None:
    models = [model_of(), model_of(BATCHED | {"d_model": 26, "n_heads": 2, "seq_len": 7}, seed=2)]
    expected = [forecast(models[k % 2], k) for k in range(8)]
    assert all_equal(in_threads(lambda k: forecast(models[k % 2], k % 8), 40), [expected[k % 8] for k in range(40)])


def test_training_and_evaluation_of_copies_do_not_affect_each_other() -> None:
    model = model_of()
    expected = forecast(model, 0)
    ended = Event()

    def train_copies() -> None:
        while not ended.is_set():
            for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                duplicate.train()
                duplicate(*inputs_of(model.settings))[0].sum().backward()
                with torch.no_grad():
                    for parameter in duplicate.parameters():
                        parameter.zero_()
                duplicate.eval()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(train_copies)
        try:
            actual = in_threads(lambda _: forecast(model, 0), 40)
        finally:
            ended.set()
        other.result()
    assert all_equal(actual, [expected] * len(actual))


def test_mode_of_a_call_is_that_of_its_begin() -> None:
    model = model_of()
    expected = forecast(model, 0)
    changed: list[bool] = []
    embedding = model._forecaster[0].decoder_embedding

    def switch(*_: Any) -> None:
        model.train()  # as another thread might, in the middle of the call
        changed.append(True)

    handle = embedding.register_forward_pre_hook(switch)
    assert all_equal([forecast(model, 0)], [expected])
    handle.remove()
    assert changed
    assert not all_equal([forecast(model, 0)], [expected])


def test_calls_leave_the_forecaster_unchanged() -> None:
    model = model_of()
    forecaster = model._forecaster[0]
    before = dict(forecaster.named_parameters()), [dict(module.__dict__) for module in forecaster.modules()]
    forecast(model, 0)
    model(*inputs_of(model.settings))[0].sum().backward()
    with pytest.raises(ValueError, match="x_enc"):
        model(torch.zeros(1, 2, 3), *inputs_of(model.settings)[1:])
    assert before[1] == [dict(module.__dict__) for module in forecaster.modules()]
    assert all(before[0][name] is parameter for name, parameter in forecaster.named_parameters())
    assert all(parameter.is_meta for parameter in forecaster.parameters())


def test_shared_memory_holds_parameters_and_tables() -> None:
    model = model_of()
    expected = forecast(model, 0)
    assert model.share_memory() is model
    forecaster = model._forecaster[0]
    assert all(tensor.is_shared() for tensor in (*model.parameters(), *forecaster.buffers()))
    assert all_equal(in_threads(lambda _: forecast(model, 0), 8), [expected] * 8)


def test_states_may_be_loaded_between_calls() -> None:
    model, other = model_of(seed=1), model_of(seed=2)
    states = [copy.deepcopy(model.state_dict()), copy.deepcopy(other.state_dict())]
    expected = [forecast(model, 0), forecast(other, 0)]
    for k in (1, 0, 1):
        model.load_state_dict(copy.deepcopy(states[k]), assign=k == 1)
        assert all_equal(in_threads(lambda _: forecast(model, 0), 8), [expected[k]] * 8)
