"""Bitwise exact translation of checkpoints between the original layout and ours."""

import os
import subprocess
import sys
from math import prod

import pytest
import torch
from torch import Tensor

from pgat_fast import Config, build_model, load_config
from pgat_fast.compat import from_original_layout, to_original_layout
from pgat_fast.errors import CheckpointError
from pgat_fast.original_layout import original_shapes, sources
from tests import golden
from tests.pgat_fast.model.variants import SMALL, VARIANTS, config_of

BATCHED, HIERARCHICAL = config_of("batched"), config_of("hierarchical")


def original_state(config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a random checkpoint in the original layout."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in original_shapes(config.model).items()
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that names, their order, dtypes and all bits are equal."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


# --- layout ---


@pytest.mark.parametrize(("combiner", "total"), [("hierarchical", 12_310_208), ("batched", 9_184_952)])
def test_production_models_have_known_parameter_counts(combiner: str, total: int) -> None:
    production = {
        **{"seq_len": 250, "label_len": 125, "pred_len": 10, "enc_in": 118, "dec_in": 118, "c_out": 4},
        **{"d_model": 130, "n_heads": 8, "e_layers": 4, "d_layers": 2, "celestial_fusion_layers": 4},
    }
    config = load_config(production | {"combiner": combiner, "compatibility": "original"})
    assert sum(map(prod, original_shapes(config.model).values())) == total


@pytest.mark.parametrize("name", golden.CASES)
def test_names_shapes_and_order_equal_existing_checkpoints(name: str) -> None:
    case = golden.load(name)
    assert list(original_shapes(case.config.model).items()) == list(case.shapes.items())


@pytest.mark.parametrize("name", golden.CASES)
def test_unmapped_parameters_never_received_a_gradient(name: str) -> None:
    case = golden.load(name)
    model = build_model(case.config)
    used_names = {source.name for source in sources(key for key, _ in model.named_parameters()).values()}
    # Recorded in evaluation, where the variance of the stochastic learner is not used.
    sampled = {f"stochastic_logvar.{part}" for part in ("weight", "bias")} & set(case.shapes)
    assert set(case.shapes) - used_names == case.without_gradient - sampled


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_of_our_parameters_has_its_own_source(variant: str) -> None:
    config = config_of(variant)
    places = sources(name for name, _ in build_model(config).named_parameters())
    names = [source.name for source in places.values()]
    assert len(set(names)) == len(names)
    assert set(names) <= set(original_shapes(config.model))


# --- round trips ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_original_checkpoint_round_trip_is_bitwise_exact(variant: str) -> None:
    config = config_of(variant)
    state = original_state(config)
    translated = from_original_layout(state, config)
    build_model(config).load_state_dict(translated)
    assert_same(to_original_layout(translated, config), state)
    assert_same(to_original_layout(dict(translated), config, unused=translated.unused), state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_state_round_trip_is_bitwise_exact(variant: str) -> None:
    config = config_of(variant)
    state = build_model(config).state_dict()
    original = to_original_layout(state, config)
    assert {name: tuple(t.shape) for name, t in original.items()} == original_shapes(config.model)
    assert_same(dict(from_original_layout(original, config)), dict(state))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_translation_keeps_dtype(dtype: torch.dtype) -> None:
    state = original_state(BATCHED, dtype)
    translated = from_original_layout(state, BATCHED)
    assert {tensor.dtype for tensor in translated.values()} == {dtype}
    assert {tensor.dtype for tensor in to_original_layout(dict(translated), BATCHED).values()} == {dtype}
    assert_same(to_original_layout(translated, BATCHED), state)


def test_translation_returns_views() -> None:
    state = original_state(HIERARCHICAL)
    storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    translated = from_original_layout(state, HIERARCHICAL)
    assert {tensor.untyped_storage().data_ptr() for tensor in translated.values()} <= storages


def test_initial_values_of_unused_parameters_are_deterministic() -> None:
    state = build_model(HIERARCHICAL).state_dict()
    first, second = to_original_layout(state, HIERARCHICAL), to_original_layout(state, HIERARCHICAL)
    assert_same(first, second)
    assert all(torch.isfinite(tensor).all() for tensor in first.values())


def test_gradients_reach_original_names() -> None:
    state = {name: tensor.requires_grad_() for name, tensor in original_state(HIERARCHICAL).items()}
    translated = from_original_layout(state, HIERARCHICAL)
    torch.stack([tensor.sum() for tensor in translated.values()]).sum().backward()
    parts = {source.name: source.part for source in sources(translated).values()}
    assert set(parts.values()) == {"whole", "first", "value"}
    for name, tensor in state.items():
        if name not in parts:
            assert tensor.grad is None, name
        else:
            assert tensor.grad is not None, name
            # only the last third of packed queries, keys and values, the values, is used
            unused_rows = 2 * (len(tensor) // 3) if parts[name] == "value" else 0
            assert (tensor.grad[:unused_rows] == 0).all(), name
            assert (tensor.grad[unused_rows:] == 1).all(), name


def test_gradients_reach_our_names() -> None:
    state = {name: p.detach().clone().requires_grad_() for name, p in build_model(BATCHED).named_parameters()}
    original = to_original_layout(state, BATCHED)
    torch.stack([tensor.sum() for tensor in original.values()]).sum().backward()
    for name, tensor in state.items():
        assert tensor.grad is not None, name
        assert (tensor.grad == 1).all(), name


# --- errors ---


def test_one_error_lists_all_faults_of_an_original_state() -> None:
    state = original_state(BATCHED)
    del state["projection.bias"], state["market_context_encoder.0.weight"]
    state |= {"projektion.bias": torch.zeros(4), "extra": torch.zeros(())}
    state["projection.weight"] = torch.zeros(4, 25)
    state["celestial_nodes.aspect_embeddings"] = torch.zeros(26, 5)  # unused, but part of the layout
    with pytest.raises(CheckpointError) as caught:
        from_original_layout(state, BATCHED)
    message = str(caught.value)
    for part in (
        "missing (2): projection.bias; market_context_encoder.0.weight",
        "unknown (2): projektion.bias; extra",
        "wrong shape (2): celestial_nodes.aspect_embeddings is [26, 5], expected [5, 26]; "
        "projection.weight is [4, 25], expected [4, 26]",
    ):
        assert part in message, part


def test_one_error_lists_all_faults_of_our_state() -> None:
    state = dict(build_model(BATCHED).state_dict())
    del state["head.bias"]
    state |= {"tail.bias": torch.zeros(4), "head.weight": torch.zeros(3, 26)}
    with pytest.raises(CheckpointError) as caught:
        to_original_layout(state, BATCHED)
    for part in ("missing (1): head.bias", "unknown (1): tail.bias", "head.weight is [3, 26], expected [4, 26]"):
        assert part in str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_error_explains_wrapper_prefix(prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in original_state(BATCHED).items()}
    with pytest.raises(CheckpointError, match="remove the wrapper's prefix"):
        from_original_layout(state, BATCHED)


@pytest.mark.parametrize(("configured", "trained"), [(BATCHED, HIERARCHICAL), (HIERARCHICAL, BATCHED)])
def test_error_explains_checkpoint_of_the_other_combiner(configured: Config, trained: Config) -> None:
    expected = f"combiner: {trained.model.combiner}, but the configuration has combiner: {configured.model.combiner}"
    with pytest.raises(CheckpointError, match=expected):
        from_original_layout(original_state(trained), configured)


FIRST_THING = """
import torch
from pgat_fast import build_model, load_config
from pgat_fast.compat import from_original_layout
from pgat_fast.original_layout import original_shapes
config = load_config({"combiner": "batched", "seq_len": 5, "label_len": 1, "pred_len": 1, "d_model": 26, "n_heads": 2})
state = {name: torch.zeros(shape) for name, shape in original_shapes(config.model).items()}
ours = from_original_layout(state, config)
model = build_model(config)
model.load_state_dict(ours)
model(torch.zeros(1, 5, 118), torch.zeros(1, 5, 4), torch.zeros(1, 2, 118), torch.zeros(1, 2, 4))
"""


@pytest.mark.multiprocess
def test_translation_works_first_in_a_new_process() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", FIRST_THING], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_invalid_values_of_unused_parameters_are_rejected() -> None:
    state = build_model(BATCHED).state_dict()
    for unused in (
        {"no.such.parameter": torch.zeros(1)},
        {"celestial_nodes.aspect_embeddings": torch.zeros(2)},
        {"phase_aware_processor.celestial_processors.sun.feature_attention.in_proj_weight": torch.zeros(2, 2)},
    ):
        with pytest.raises(CheckpointError, match=next(iter(unused)).replace(".", r"\.")):
            to_original_layout(state, BATCHED, unused=unused)


def test_error_names_compatibility_setting_for_original_checkpoint() -> None:
    model = SMALL | {"combiner": "batched", "compatibility": "original"}
    state = to_original_layout(build_model(model).state_dict(), model)
    with pytest.raises(CheckpointError, match=r"trained with compatibility: original"):
        from_original_layout(state, model | {"compatibility": "corrected"})


def test_invalid_state_dict_is_rejected_with_a_hint() -> None:
    state = to_original_layout(build_model(BATCHED).state_dict(), BATCHED)
    with pytest.raises(CheckpointError, match=r"'model' is a dict, not a tensor: pass state"):
        from_original_layout({"model": state, "epoch": 3}, BATCHED)
    with pytest.raises(CheckpointError, match=r"not tensors: projection\.bias \(NoneType\)"):
        from_original_layout(state | {"projection.bias": None}, BATCHED)
    with pytest.raises(CheckpointError, match="pass a dict"):
        from_original_layout([1], BATCHED)


def test_error_names_ten_of_many_missing_parameters_and_counts_the_others() -> None:
    state = to_original_layout(build_model(BATCHED).state_dict(), BATCHED)
    names = list(state)[:200]
    with pytest.raises(CheckpointError) as caught:
        from_original_layout({name: state[name] for name in state if name not in names}, BATCHED)
    assert f"missing (200): {'; '.join(names[:10])}; and 190 more" in str(caught.value)
