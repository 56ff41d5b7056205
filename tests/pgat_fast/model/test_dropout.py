"""Section 13: positions of dropout."""

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model
from pgat_fast.data.bodies import BODIES
from tests.pgat_fast.model.variants import FEW, config_of, inputs_of, tensors_of

RATE = 0.35

COMMON = {
    # sums of both embeddings
    "graph_builder.embedding.dropout": 1,
    "decoder_embedding.dropout": 1,
    # fused sum of the encoder
    "encoder.dropout": 1,
    # decoder: two attentions and a feed-forward before their residual sums, and inside the feed-forward
    "decoder.0.dropout": 3,
    "decoder.0.feed_forward.2": 1,
}
BATCHED = {
    "graph_builder.combiner.layers.0.dropout": 2,
    "graph_builder.combiner.layers.0.feed_forward.2": 1,
    "graph_builder.combiner.layers.1.dropout": 2,
    "graph_builder.combiner.layers.1.feed_forward.2": 1,
    "graph_builder.combiner.output.2": 1,
}
HIERARCHICAL = {
    "graph_builder.combiner.layers.0.dropout": 3,
    "graph_builder.combiner.layers.0.feed_forward.2": 1,
    "graph_builder.combiner.layers.0.context_attention.dropout": 1,
    "graph_builder.combiner.output.2": 1,
}
GRAPH_ATTENTION = {
    "processing.layers.0.dropout": 2,
    "processing.layers.0.feed_forward.2": 1,
    "processing.layers.1.dropout": 2,
    "processing.layers.1.feed_forward.2": 1,
}
MIXTURE = {
    f"head.layers.{layer}.{part}": 1 for layer in range(2) for part in ("dropout", "dropout1", "dropout2", "dropout3")
}
BODY_PROCESSORS = {f"graph_builder.phase.bodies.{body}.dropout": 1 for body in BODIES}
MAPPING = {f"mapping.layers.{layer}.{part}": 1 for layer in range(2) for part in ("dropout", "dropout1", "dropout2")}
FIXED = ("graph_builder.phase.bodies.*", "mapping.*")
"""Modules with a fixed rate of 0.1."""

EXPECTED = {
    "batched": COMMON | BATCHED | BODY_PROCESSORS,
    "hierarchical everything, joint": COMMON | HIERARCHICAL | GRAPH_ATTENTION | MIXTURE | BODY_PROCESSORS | MAPPING,
    "no bodies": COMMON,
}
WEIGHTS = {
    "batched": {"graph_builder.body_fusion.attention", "graph_builder.combiner.layers.[01].attention"},
    "hierarchical everything, joint": {
        "graph_builder.body_fusion.attention",
        "graph_builder.combiner.layers.0.attention",
        "graph_builder.combiner.edge_attention",
        "processing.layers.[01].attention",
        "head.layers.[01].self_attn",
        "head.layers.[01].multihead_attn",
        "mapping.layers.[01].self_attn",
    },
    "no bodies": set(),
}
COMMON_WEIGHTS = {"encoder.attention", "decoder.0.self_attention", "decoder.0.cross_attention"}


def model_of(variant: str, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config_of(variant, dropout=dropout), backend="reference").double()


def outputs(model: nn.Module, variant: str) -> list[Tensor]:
    """Return the forecast under a fixed seed, without random draws of the stochastic learner."""
    torch.manual_seed(3)
    for module in model.modules():
        if "Stochastic" in type(module).__name__:
            module.eval()
    with torch.no_grad():
        return tensors_of(model(*inputs_of(config_of(variant), dtype=torch.float64)))


def close(first: list[Tensor], second: list[Tensor]) -> bool:
    # Rounding of float64, amplified by the divisions of section 5.
    return all(torch.allclose(a, b, rtol=1e-7, atol=1e-7) for a, b in zip(first, second, strict=True))


def named(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


@pytest.mark.parametrize("variant", EXPECTED)
def test_dropout_modules_are_those_of_the_architecture(variant: str) -> None:
    model = model_of(variant, RATE).train()
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        model.get_submodule(name).register_forward_hook(lambda *_: calls.update([name]))

    for name, module in named(model, nn.Dropout):
        count(name)
        assert isinstance(module, nn.Dropout)
        assert module.p == (0.1 if any(fnmatchcase(name, fixed) for fixed in FIXED) else RATE), name
    outputs(model, variant)
    assert calls == EXPECTED[variant]


@pytest.mark.parametrize("variant", WEIGHTS)
def test_attention_dropout_is_that_of_the_architecture(variant: str) -> None:
    dropped = set()
    for name, module in named(model_of(variant, RATE), nn.MultiheadAttention):
        assert isinstance(module, nn.MultiheadAttention)
        assert module.dropout in (0, 0.1 if fnmatchcase(name, "mapping.*") else RATE), name
        if module.dropout:
            dropped.add(name)
    patterns = WEIGHTS[variant] | COMMON_WEIGHTS
    assert {name for name in dropped if not any(fnmatchcase(name, p) for p in patterns)} == set()
    assert all(any(fnmatchcase(name, pattern) for name in dropped) for pattern in patterns)


def test_rate_of_zero_keeps_fixed_rates_of_bodies_and_mapping() -> None:
    model = model_of("hierarchical everything, joint", 0.0)
    active = {name for name, module in named(model, nn.Dropout) if getattr(module, "p", 0) > 0}
    assert active == set(BODY_PROCESSORS | MAPPING)


def silence(model: nn.Module) -> None:
    for _, module in named(model, nn.Dropout):
        module.p = 0.0
    for _, module in named(model, nn.MultiheadAttention):
        module.dropout = 0.0


@pytest.mark.parametrize("variant", FEW)
def test_training_without_dropout_equals_evaluation(variant: str) -> None:
    model = model_of(variant, 0.0)
    silence(model)
    assert close(outputs(model.train(), variant), outputs(model.eval(), variant))


@pytest.mark.parametrize("variant", EXPECTED)
def test_each_dropout_changes_the_forecast_in_training(variant: str) -> None:
    model = model_of(variant, 0.0)
    silence(model)
    expected = outputs(model.train(), variant)
    inter_body = "graph_builder.phase.attention"
    for name, module in [*named(model, nn.Dropout), *named(model, nn.MultiheadAttention)]:
        rate = "p" if isinstance(module, nn.Dropout) else "dropout"
        setattr(module, rate, 0.5)
        assert not close(outputs(model, variant), expected), name
        setattr(module, rate, 0.0)
    assert close(outputs(model, variant), expected)
    assert dict(model.named_modules()).get(inter_body) is None or model.get_submodule(inter_body).dropout == 0
