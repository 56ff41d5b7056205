"""Connections of the model's parts, section by section.

Other tests cover the parts, and the parity cases cover the defaults. These tests connect the parts independently.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model
from pgat_fast.model.forecast import Mixture
from tests.pgat_fast.model.variants import VARIANTS, config_of, inputs_of, tensors_of


def celestial(graph: nn.Module, x: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute states and adjacency according to sections 1 to 6."""
    part: dict[str, Any] = dict(graph.named_children())
    features, phase = part["phase"](x)
    embedded = part["embedding"](features, marks)
    context = part["market_context"](embedded)
    dynamic, bodies = part["body_nodes"](embedded)
    e = part["body_fusion"](embedded, bodies)
    steps = x.shape[1]
    phases = phase[:, None].expand(-1, steps, -1, -1)
    astrological = graph.get_buffer("astrological").expand_as(dynamic)
    contexts = context[:, None].expand(-1, steps, -1)
    first = part["mixer"](contexts, (phases, astrological, dynamic))
    second = part["learner"](e)[0]
    return e, part["combiner"]((first, second, dynamic), e)


def inputs_as_nodes(graph: nn.Module, x: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute states and adjacency without a celestial graph, in place of sections 1 to 6."""
    part: dict[str, Any] = dict(graph.named_children())
    e = part["embedding"](x, marks)
    learned = part["learner"](e)[0]
    identity = torch.eye(x.shape[2], dtype=x.dtype).expand_as(learned)
    return e, part["mixer"](e, (learned, learned, identity))


def connected(model: nn.Module, variant: str, inputs: tuple[Tensor, ...]) -> Tensor | Mixture:
    config = config_of(variant).model
    part: dict[str, Any] = dict(model.named_children())
    x_enc, x_mark_enc, x_dec, x_mark_dec = inputs
    make = celestial if config.use_celestial_graph else inputs_as_nodes
    e, adjacency = make(part["graph_builder"], x_enc, x_mark_enc)
    if config.use_hierarchical_mapping:
        e = part["mapping"](e)
    nodes = part["encoder"](e, adjacency)
    if config.graph_processing == "attention":
        graph = part["readout"](part["processing"](nodes, adjacency).reshape(*e.shape[:2], -1))
    else:
        graph = part["processing"](part["readout"](nodes.reshape(*e.shape[:2], -1)), adjacency)
    d = part["decoder_embedding"](x_dec, x_mark_dec)
    for block in part["decoder"]:
        d = block(d, graph)
    d = d[:, config.label_len :]  # the decoder input is L days of history, then P days of forecast
    head = part["head"]
    result: Tensor | Mixture = head(d, graph) if config.use_mixture_decoder else head(d)
    return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_are_connected_as_in_the_architecture(variant: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(variant)).double().eval()
    inputs = inputs_of(config_of(variant), dtype=torch.float64)
    actual, expected = tensors_of(model(*inputs)), tensors_of((connected(model, variant, inputs), {}))
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        # Rounding of float64, amplified by the divisions of section 5.
        assert torch.allclose(actual_tensor, expected_tensor, rtol=1e-8, atol=1e-8)
