"""The complete reference model, in the order of the sections of docs/model.md."""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from pgat_fast.data.bodies import BODY_CHANNELS
from pgat_fast.model.forecast import Diagnostics, Forecast
from pgat_fast.model.reference.adjacency import AdjacencyLearner, AdjacencyMixer, StochasticAdjacencyLearner
from pgat_fast.model.reference.body_nodes import BodyFusion, BodyNodes, astrological_adjacency
from pgat_fast.model.reference.combiner_batched import BatchedCombiner
from pgat_fast.model.reference.combiner_hierarchical import HierarchicalCombiner
from pgat_fast.model.reference.decoder import DecoderBlock
from pgat_fast.model.reference.embedding import Embedding, MarketContext
from pgat_fast.model.reference.encoder import SpatioTemporalEncoder
from pgat_fast.model.reference.graph_processing import GraphAttention, PartitionedProcessing
from pgat_fast.model.reference.hierarchical_mapping import HierarchicalMapping
from pgat_fast.model.reference.initialization import initialize
from pgat_fast.model.reference.mixture import MixtureDecoder
from pgat_fast.model.reference.phase import PhaseAwareProcessor
from pgat_fast.model.shapes import check_inputs

if TYPE_CHECKING:
    from pgat_fast.config.schema import ModelConfig

_FORMER_NAMES: Final = {"graph": "graph_builder"}
"""Former names of submodules of `PGAT`. `graph` is the name of an attribute of every exported program."""

Part = type[nn.Module]
"""Class of a part of the model. Faster backends replace some, with the same constructor, parameters and signature."""


class CelestialGraph(nn.Module):
    """Sections 1 to 6: market states and one adjacency a timestep, computed from the input columns."""

    phase_part: ClassVar[Part] = PhaseAwareProcessor
    body_nodes_part: ClassVar[Part] = BodyNodes
    body_fusion_part: ClassVar[Part] = BodyFusion
    combiner_parts: ClassVar[dict[str, Part]] = {"batched": BatchedCombiner, "hierarchical": HierarchicalCombiner}

    astrological: Tensor

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        width, heads, dropout = config.embed_dim, config.n_heads, config.dropout
        self.phase = self.phase_part(heads, config.feature_map, config.phase_edges)
        self.embedding = _embedding(config, config.nodes * BODY_CHANNELS)
        self.market_context = MarketContext(width)
        self.body_nodes = self.body_nodes_part(width)
        self.body_fusion = self.body_fusion_part(width, heads, dropout)
        self.mixer = AdjacencyMixer(width)
        self.learner = _learner(config)
        layers = config.fusion_layers if config.combiner == "batched" else config.celestial_fusion_layers
        self.combiner = self.combiner_parts[config.combiner](width, heads, layers, dropout)
        self.register_buffer("astrological", astrological_adjacency(), persistent=False)

    def forward(self, x: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Diagnostics]:
        """Return states [B, S, D], adjacency [B, S, N, N], diagnostics for x [B, S, F] and marks [B, S, columns]."""
        features, phase = self.phase(x)
        e = self.embedding(features, marks)
        context = self.market_context(e)
        dynamic, bodies = self.body_nodes(e)
        e = self.body_fusion(e, bodies)
        static = self.mixer(context[:, None], (phase[:, None], self.astrological.to(e.dtype), dynamic))
        learned, kl = self.learner(e)
        adjacency = self.combiner((static.to(e.dtype), learned.to(e.dtype), dynamic), e)
        diagnostics = {"phase_adjacency": phase, "dynamic_adjacency": dynamic, "learned_adjacency": learned}
        return e, adjacency, diagnostics if kl is None else diagnostics | {"kl_divergence": kl}


class InputGraph(nn.Module):
    """Replacement of sections 1 to 6 without a celestial graph: every input is a node."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        self.embedding = _embedding(config, config.enc_in)
        self.learner = _learner(config)
        self.mixer = AdjacencyMixer(config.embed_dim)

    def forward(self, x: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Diagnostics]:
        """Return states [B, S, D], adjacency [B, S, N, N], diagnostics for x [B, S, F] and marks [B, S, columns]."""
        e = self.embedding(x, marks)
        learned, kl = self.learner(e)
        identity = torch.eye(learned.shape[-1], dtype=learned.dtype, device=learned.device)
        adjacency = self.mixer(e, (learned, learned, identity))
        diagnostics = {"learned_adjacency": learned}
        return e, adjacency, diagnostics if kl is None else diagnostics | {"kl_divergence": kl}


def _embedding(config: "ModelConfig", features: int) -> Embedding:
    return Embedding(features, config.embed_dim, config.freq, config.calendar_marks == "integer", config.dropout)


def _learner(config: "ModelConfig") -> nn.Module:
    learner = StochasticAdjacencyLearner if config.use_stochastic_learner else AdjacencyLearner
    return learner(config.embed_dim, config.nodes)


def rename_former(state: MutableMapping[str, Any], prefix: str = "") -> None:
    """Rename entries of a state dict of an earlier version in place; `prefix` is that of the forecaster's names.

    An entry is left as it is if one of the present name exists.
    """
    for former, present in _FORMER_NAMES.items():
        start = f"{prefix}{former}."
        for name in [name for name in state if isinstance(name, str) and name.startswith(start)]:
            present_name = f"{prefix}{present}.{name.removeprefix(start)}"
            if present_name not in state:
                state[present_name] = state.pop(name)


class PGAT(nn.Module):
    """The forecaster: `model(x_enc, x_mark_enc, x_dec, x_mark_dec) -> (forecast, diagnostics)`."""

    celestial_part: ClassVar[Part] = CelestialGraph
    mapping_part: ClassVar[Part] = HierarchicalMapping
    encoder_part: ClassVar[Part] = SpatioTemporalEncoder
    graph_attention_part: ClassVar[Part] = GraphAttention
    decoder_part: ClassVar[Part] = DecoderBlock
    mixture_part: ClassVar[Part] = MixtureDecoder

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        self.config = config
        width, heads, nodes, dropout = config.embed_dim, config.n_heads, config.nodes, config.dropout
        self.graph_builder = self.celestial_part(config) if config.use_celestial_graph else InputGraph(config)
        self.mapping = self.mapping_part(width, heads, nodes) if config.use_hierarchical_mapping else None
        self.encoder = self.encoder_part(width, heads, nodes, config.seq_len, dropout)
        self.processing: nn.Module
        if config.graph_processing == "partitioned":
            self.processing = PartitionedProcessing(width, nodes, config.c_out)
        else:
            self.processing = self.graph_attention_part(
                width, heads, config.e_layers, dropout, config.adjacency_threshold, config.adjacency_bias
            )
        self.readout = nn.Linear(nodes * width, width)
        self.decoder_embedding = _embedding(config, config.dec_in)
        self.decoder = nn.ModuleList(self.decoder_part(width, heads, dropout) for _ in range(config.d_layers))
        self.head: nn.Module
        if config.use_mixture_decoder:
            self.head = self.mixture_part(width, heads, config.c_out, config.mdn_components, dropout)
        else:
            self.head = nn.Linear(width, config.c_out)
        initialize(self)

    def forward(
        self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor
    ) -> tuple[Forecast, Diagnostics]:
        """Forecast the last P steps of the decoder input.

        Args:
            x_enc: history, [B, S, enc_in], float, scaled as in training.
            x_mark_enc: its calendar marks, [B, S, columns], fractions in [0, 1) of month, day, weekday, hour.
            x_dec: decoder input, [B, L + P, dec_in].
            x_mark_dec: its calendar marks, [B, L + P, columns].

        Returns:
            The scaled forecast [B, P, c_out] (a `Mixture` with `use_mixture_decoder`), and diagnostics:
            `adjacency` [B, S, N, N], `learned_adjacency` [B, S, N, N], with the celestial graph
            `phase_adjacency` [B, N, N] and `dynamic_adjacency` [B, S, N, N], with the stochastic learner the scalar
            `kl_divergence`, which training adds to the loss.

        Raises:
            ValueError: a shape does not match the configuration.
        """
        check_inputs(self.config, x_enc, x_mark_enc, x_dec, x_mark_dec)
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            # torch makes a size symbolic once it differs from that of an earlier call or model. For the number
            # of steps this saves no compilation, and inductor fails on its strides (`1 < s91`, torch 2.13.0).
            torch._dynamo.mark_static(x_enc, 1)
            torch._dynamo.mark_static(x_dec, 1)
        e, adjacency, diagnostics = self.graph_builder(x_enc, x_mark_enc)
        if self.mapping is not None:
            e = self.mapping(e)
        nodes = self.encoder(e, adjacency)
        if isinstance(self.processing, GraphAttention):
            graph = self.readout(self.processing(nodes, adjacency).flatten(2))
        else:
            graph = self.processing(self.readout(nodes.flatten(2)), adjacency)
        d = self.decoder_embedding(x_dec, x_mark_dec)
        for layer in self.decoder:
            d = layer(d, graph)
        d = d[:, -self.config.pred_len :]
        forecast = self.head(d, graph) if isinstance(self.head, MixtureDecoder) else self.head(d)
        return forecast, diagnostics | {"adjacency": adjacency}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename_former(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled module, also one of an earlier version."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # untyped in torch
        self._modules = {_FORMER_NAMES.get(name, name): module for name, module in self._modules.items()}
