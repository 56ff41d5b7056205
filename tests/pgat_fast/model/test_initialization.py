"""Section 13: initial values of the parameters."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pgat_fast.data.bodies import BODIES
from tests.pgat_fast.model.by_hand import Array, array
from tests.pgat_fast.model.variants import VARIANTS, model_of

PATTERNS = """
sun 1 .8 .9 .7, moon .3 .9 .4 .8, mercury .9 .3 .8 .4, venus .6 .7 .8 .9, mars .9 .2 .3 .8, jupiter .8 .9 .7 .6,
saturn .2 .8 .9 .3, uranus .9 .1 .2 .9, neptune .1 .9 .8 .2, pluto .8 .1 .9 .9, north_node .7 .6 .8 .5,
south_node .3 .4 .2 .5, chiron .4 .6 .5 .7
"""
"""Body patterns as listed in the architecture."""

COVER = ("hierarchical everything, joint", "batched", "1 head, odd width", "no bodies, attention, bias")
ONES = ("edges.weights", "scaler", "adjacency_scale")
NORMAL = ("encoder.spatial_positions", "encoder.temporal_positions", "encoder.interaction")
BODY_EMBEDDINGS = "graph_builder.body_nodes.embeddings"


def distance(values: Array, distribution: Array) -> float:
    """Return the Kolmogorov-Smirnov statistic of sorted values, given the distribution function at them."""
    ranks = np.arange(values.size)
    return float(np.maximum(distribution - ranks / values.size, (ranks + 1) / values.size - distribution).max())


def limit(count: int) -> float:
    """Return the bound that `distance` exceeds once in 4 million draws: 2 exp(-2 * 2.82^2)."""
    return 2.82 / math.sqrt(count)


def norm_weights(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_biases_are_zero_and_scales_are_one(variant: str) -> None:
    model = model_of(variant)
    norms = norm_weights(model)
    checked = set()
    for name, parameter in model.named_parameters():
        if "bias" in name.rpartition(".")[2]:
            assert (parameter == 0).all(), name
        elif name in norms or name.endswith(ONES):
            assert (parameter == 1).all(), name
        else:
            assert parameter.dim() >= 2, name
            continue
        checked.add(name)
    assert norms < checked


def bound(name: str, parameter: nn.Parameter, single_key: set[str]) -> float:
    """Return the bound of Glorot and Bengio: the root of 6 / (fan in + fan out)."""
    outputs, inputs = parameter.shape[:2]
    taps = math.prod(parameter.shape[2:])
    if name in single_key:  # one third of the packed matrix of queries, keys and values
        return math.sqrt(6 / (inputs + 3 * outputs))
    return math.sqrt(6 / (taps * inputs + taps * outputs))


@pytest.mark.parametrize("variant", COVER)
def test_weights_are_xavier_uniform(variant: str) -> None:
    model = model_of(variant)
    single_key = {
        name
        for name, _ in model.named_parameters()
        if name.endswith("attention.value.weight") and ("phase.bodies" in name or "context_attention" in name)
    }
    assert bool(single_key) == ("no bodies" not in variant)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and name not in (*NORMAL, BODY_EMBEDDINGS):
            limits = bound(name, parameter, single_key)
            values = np.sort(array(parameter).ravel())
            assert np.abs(values).max() <= limits * (1 + 1e-6), name  # float32
            assert distance(values, (values / limits + 1) / 2) < limit(values.size), name


@pytest.mark.parametrize("variant", ["hierarchical", "no bodies"])
def test_encoder_positions_and_interactions_are_standard_normal(variant: str) -> None:
    model = model_of(variant)
    for name in NORMAL:
        values = np.sort(array(model.get_parameter(name)).ravel())
        cumulative = 0.5 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))
        assert distance(values, cumulative) < limit(values.size), name


@pytest.mark.parametrize("variant", ["hierarchical", "1 head, odd width"])
def test_body_embeddings_have_their_patterns(variant: str) -> None:
    embeddings = array(model_of(variant).get_parameter(BODY_EMBEDDINGS))
    patterns = {}
    for entry in PATTERNS.replace("\n", " ").split(","):
        body, *values = entry.split()
        patterns[body] = [float(value) for value in values]
    assert set(patterns) == set(BODIES)
    for b, body in enumerate(BODIES):
        for channel in range(embeddings.shape[1]):
            # float32 represents multiples of one tenth to seven digits
            assert embeddings[b, channel] == pytest.approx(0.1 * patterns[body][channel % 4], rel=1e-6)


def test_values_depend_on_the_seed() -> None:
    first, again, other = (dict(model_of("batched", seed).named_parameters()) for seed in (1, 1, 2))
    norms = norm_weights(model_of("batched"))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        drawn = parameter.dim() >= 2 and name != BODY_EMBEDDINGS
        assert torch.equal(parameter, other[name]) != drawn, name
    assert norms


def test_weights_are_drawn_independently() -> None:
    model = model_of("hierarchical everything, joint")
    drawn = [p for name, p in model.named_parameters() if p.dim() >= 2 and name != BODY_EMBEDDINGS]
    firsts = [round(parameter.flatten()[0].item(), 12) for parameter in drawn]
    assert len(set(firsts)) == len(firsts)
