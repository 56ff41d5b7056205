"""The original checkpoint layout: its parameters in order, and their counterparts in our model.

`original_shapes` lists names and shapes; `sources` maps each of our parameters to one of them. The forward pass never
reads the parameters that no rule maps.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pgat_fast.config.schema import ModelConfig
from pgat_fast.data.bodies import BODIES, BODY_CHANNELS
from pgat_fast.data.columns import CELLS, feature_columns
from pgat_fast.model.reference.body_nodes import fusion_width
from pgat_fast.model.reference.combiner_hierarchical import INTERACTIONS, KINDS

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


# --- shapes ---------------------------------------------------------------------------------------------------------


def _under(prefix: str, *parts: Mapping[str, Shape]) -> Shapes:
    return {f"{prefix}.{name}": shape for part in parts for name, shape in part.items()}


def _linear(outputs: int, *inputs: int) -> Shapes:
    return {"weight": (outputs, *inputs), "bias": (outputs,)}


def _norm(width: int) -> Shapes:
    return {"weight": (width,), "bias": (width,)}


def _attention(width: int) -> Shapes:
    return {
        "in_proj_weight": (3 * width, width),
        "in_proj_bias": (3 * width,),
        **_under("out_proj", _linear(width, width)),
    }


def _sequence(**parts: Shapes) -> Shapes:
    """Return the shapes of the numbered members of an `nn.Sequential`, given as `_0=..., _3=...`."""
    return {name: shape for key, part in parts.items() for name, shape in _under(key.lstrip("_"), part).items()}


def _gru(width: int) -> Shapes:
    return {
        "weight_ih_l0": (3 * width, width),
        "weight_hh_l0": (3 * width, width),
        "bias_ih_l0": (3 * width,),
        "bias_hh_l0": (3 * width,),
    }


def _norms(count: int, width: int, name: str = "norm") -> Shapes:
    return {key: shape for k in range(1, count + 1) for key, shape in _under(f"{name}{k}", _norm(width)).items()}


def _feed_forward(width: int, hidden: int) -> Shapes:
    return _under("feed_forward", _sequence(_0=_linear(hidden, width), _3=_linear(width, hidden)))


def _phase(config: ModelConfig) -> Iterator[Shapes]:
    c = BODY_CHANNELS
    for body in BODIES:
        n = len(feature_columns(body, config.feature_map))
        yield _under(
            f"celestial_processors.{body}",
            _under("feature_attention", _attention(n)),
            _under("feature_transformer", _sequence(_0=_linear(2 * c, n), _3=_linear(c, 2 * c), _4=_norm(c))),
            _under("temporal_processor", _gru(c)),
        )
    yield {"phase_difference_computer.phase_weights": (6,)}
    predictor = _sequence(_0=_linear(c, 2 * c + 6), _2=_linear(c // 2, c), _4=_linear(1, c // 2))
    yield _under("phase_difference_computer.edge_predictor", predictor)
    yield {"inter_celestial_attention.phase_scaler": (1,)}
    yield _under("inter_celestial_attention.attention", _attention(c))


def _wave_aggregator() -> Iterator[Shapes]:
    # Former numbers of columns of each body; they differ from the columns of section 12.
    lengths = dict.fromkeys(BODIES, 9) | {"north_node": 12, "south_node": 8, "chiron": 3}
    yield {f"aggregation_weights.{body}": (lengths[body],) for body in sorted(BODIES)}
    for body in BODIES:
        net = _sequence(_0=_linear(32, 1), _2=_linear(64, 32), _4=_linear(32, 64), _6=_linear(1, 32))
        yield _under(f"celestial_transforms.{body}", net)


def _embedding(features: int, width: int, freq: str) -> Shapes:
    fields = ["minute"] if freq == "t" else []
    fields += ["hour", "weekday", "day", "month"]
    tables = {f"temporal_embedding.{field}_embed.weight": (CELLS[field] + 1, width) for field in fields}
    return {"value_embedding.tokenConv.weight": (width, features, 3), **tables}


def _nodes(d: int) -> Iterator[Shapes]:
    yield {"body_embeddings": (len(BODIES), d), "aspect_embeddings": (5, d)}
    for body in BODIES:
        yield _under(f"body_transforms.{body}", _sequence(_0=_linear(d, d), _2=_linear(d, d), _3=_norm(d)))
    yield _under("aspect_strength_net", _sequence(_0=_linear(d, 2 * d), _2=_linear(1, d)))
    yield _under("market_encoder", _sequence(_0=_linear(d, d), _2=_linear(d, d)))


def _batched_combiner(d: int, layers: int) -> Iterator[Shapes]:
    yield {"combination_weights": (3,)}
    yield _under("edge_projection", _linear(d, 3))
    for layer in range(layers):
        block = (_under("self_attention", _attention(d)), _feed_forward(d, 2 * d), _norms(2, d))
        yield _under(f"fusion_layers_net.{layer}", *block)
    yield _under("output_projection", _sequence(_0=_linear(d // 2, d), _3=_linear(1, d // 2)))


def _hierarchical_combiner(d: int, layers: int) -> Iterator[Shapes]:
    yield {"edge_type_embeddings": (3, d), "combination_weights": (3,)}
    ladder = _sequence(_0=_linear(d // 4, 1), _2=_linear(d // 2, d // 4), _4=_linear(d, d // 2))
    for kind in KINDS:
        yield _under(f"edge_transforms.{kind}", ladder, _sequence(_5=_norm(d)))
    yield _under("edge_attention", _attention(d))
    for layer in range(layers):
        attentions = _under("self_attention", _attention(d)) | _under("cross_attention", _attention(d))
        yield _under(f"fusion_layers_net.{layer}", attentions, _feed_forward(d, 4 * d), _norms(3, d))
    for pair in INTERACTIONS:
        net = ladder | {"0.weight": (d // 4, 2)}
        modulation = _under("context_modulation", _sequence(_0=_linear(d, d)))
        yield _under(f"pairwise_interactions.{pair}", _under("interaction_net", net), modulation)
    for regime in range(4):
        adapter = _sequence(_0=_linear(d, d), _2=_linear(d, d), _3=_norm(d))
        yield _under(f"regime_adapter.regime_adapters.{regime}", adapter)
    yield _under("regime_adapter.regime_classifier", _sequence(_0=_linear(d // 2, d), _2=_linear(4, d // 2)))
    yield _under("output_projection", _sequence(_0=_linear(d, d), _3=_linear(1, d)))
    net = _sequence(_0=_linear(d, 2 * d), _2=_linear(d, d), _4=_linear(d, d))
    yield _under("edge_calibrator.calibration_net", net)


def _celestial(config: ModelConfig) -> Iterator[Shapes]:
    d, h, n = config.embed_dim, config.n_heads, len(BODIES)
    fusion = fusion_width(d, h)
    yield _under("celestial_nodes", *_nodes(d))
    if config.combiner == "batched":
        yield _under("celestial_combiner", *_batched_combiner(d, config.fusion_layers))
    else:
        yield _under("celestial_combiner", *_hierarchical_combiner(d, config.celestial_fusion_layers))
    for role in ("query", "key", "value"):
        yield _under(f"celestial_{role}_projection", _linear(fusion, d))
    yield _under("celestial_output_projection", _linear(d, fusion))
    yield _under("celestial_fusion_attention", _attention(fusion))
    yield _under("feature_to_celestial", _linear(n, n))
    yield _under("celestial_to_feature", _linear(n, n))
    yield _under("celestial_fusion_gate", _sequence(_0=_linear(d, 2 * d), _2=_linear(d, d)))


def _mapping(d: int, nodes: int) -> Iterator[Shapes]:
    yield _under("hierarchical_mapper.temporal_conv", _linear(d, d, 3))
    yield _under("hierarchical_mapper.conv_norm", _norm(d))
    for layer in range(2):
        first_layers = (_under("self_attn", _attention(d)), _under("linear1", _linear(4 * d, d)))
        last_layers = (_under("linear2", _linear(d, 4 * d)), _norms(2, d))
        yield _under(f"hierarchical_mapper.attention_stack.layers.{layer}", *first_layers, *last_layers)
    yield _under("hierarchical_mapper.spatial_projection", _linear(d, d))
    yield _under("hierarchical_projection", _linear(d, nodes * d))


def _encoder(config: ModelConfig, dynamic: bool) -> Iterator[Shapes]:
    d, h, n = config.embed_dim, config.n_heads, config.nodes
    yield {
        "spatial_temporal_interaction": (h, d // h, d // h),
        "spatial_pos_encoding": (1, n, d),
        "temporal_pos_encoding": (1, config.seq_len, d),
    }
    for index, kernel in enumerate((1, 3, 5, 7)):
        yield _under(f"temporal_convs.{index}", _linear(d, d, kernel))
    for hop in range(3):
        yield _under(f"spatial_convs.{hop}", _linear(d, d))
    yield _under("spatial_temporal_cross_attention", _attention(d))
    for gate in ("spatial_gate", "temporal_gate", "fusion_gate"):
        yield _under(gate, _linear(d, 2 * d))
    yield _norms(3, d, "layer_norm")
    if dynamic:
        yield _under("node_feature_projection", _linear(n * d, d))
        yield _under("node_feature_back_projection", _linear(d, n * d))


def _mixture(config: ModelConfig) -> Iterator[Shapes]:
    d, count = config.embed_dim, config.c_out * config.mdn_components
    for layer in range(2):
        first_layers = (_under("self_attn", _attention(d)), _under("multihead_attn", _attention(d)))
        last_layers = (_under("linear1", _linear(4 * d, d)), _under("linear2", _linear(d, 4 * d)), _norms(3, d))
        yield _under(f"transformer_decoder.layers.{layer}", *first_layers, *last_layers)
    for head, outputs in (("means", count), ("log_stds", count), ("log_weights", config.mdn_components)):
        yield _under(f"mixture_heads.{head}", _linear(outputs, d))
    yield _under("pre_mixture_norm", _norm(d))


def _all(config: ModelConfig) -> Iterator[Shapes]:
    d, n, celestial = config.embed_dim, config.nodes, config.use_celestial_graph
    if celestial:
        yield _under("phase_aware_processor", *_phase(config))
        yield _under("wave_aggregator", *_wave_aggregator())
        yield _under("rich_feature_to_celestial", _linear(n, n * BODY_CHANNELS))
    yield _under("enc_embedding", _embedding(n * BODY_CHANNELS if celestial else config.enc_in, d, config.freq))
    yield _under("dec_embedding", _embedding(config.dec_in, d, config.freq))
    if celestial:
        yield from _celestial(config)
    if config.use_hierarchical_mapping:
        yield from _mapping(d, n)
    if config.graph_processing == "partitioned":
        share = d // n
        yield _under("covariate_interaction_layer", _linear(share, share))
        yield _under("target_fusion_layer", _sequence(_0=_linear(share, 2 * share), _2=_linear(share, share)))
    yield _under("spatiotemporal_encoder", *_encoder(config, dynamic=False))
    yield _under("dynamic_spatiotemporal_encoder", *_encoder(config, dynamic=True))
    yield _under("traditional_graph_learner", _sequence(_0=_linear(d, d), _2=_linear(n * n, d)))
    if config.use_stochastic_learner:
        yield _under("stochastic_mean", _linear(n * n, d))
        yield _under("stochastic_logvar", _linear(n * n, d))
    for layer in range(config.e_layers):
        scale: Shapes = {"adjacency_adaptation": (1,)}
        block = (scale, _under("attention", _attention(d)), _feed_forward(d, d), _norms(2, d))
        yield _under(f"graph_attention_layers.{layer}", *block)
    for layer in range(config.d_layers):
        attentions = _under("self_attention", _attention(d)) | _under("cross_attention", _attention(d))
        yield _under(f"decoder_layers.{layer}", attentions, _feed_forward(d, 4 * d), _norms(3, d))
    if config.use_mixture_decoder:
        yield _under("mixture_decoder", *_mixture(config))
    yield _under("projection", _linear(config.c_out, d))
    yield _under("market_context_encoder", _sequence(_0=_linear(d, d), _2=_linear(d, d), _3=_norm(d)))
    yield _under("adj_weight_mlp", _sequence(_0=_linear(d // 2, d), _2=_linear(3, d // 2)))


def original_shapes(config: ModelConfig) -> Shapes:
    """Return name -> shape of every parameter of the original layout, in the order of an existing state dict."""
    return {name: shape for part in _all(config) for name, shape in part.items()}


# --- sources of our parameters ----------------------------------------------------------------------------------------


class Source(NamedTuple):
    """The original parameter that one of our parameters is taken from.

    `part` is `whole`, `value` (the last third of the rows: the value projection of packed attention weights, whose
    queries and keys cannot receive a gradient), or `first` (the only entry of a leading dimension of 1).
    """

    name: str
    part: str = "whole"


_BODY = r"graph_builder\.phase\.bodies\.(\w+)\."
_ORIGINAL_BODY = r"phase_aware_processor.celestial_processors.\1."

_RULES: tuple[tuple[str, ...], ...] = (
    # 1. phase-aware processor
    (_BODY + r"attention\.output\.", _ORIGINAL_BODY + "feature_attention.out_proj."),
    (_BODY + r"attention\.value\.", _ORIGINAL_BODY + "feature_attention.in_proj_", "value"),
    (_BODY + r"expand\.", _ORIGINAL_BODY + "feature_transformer.0."),
    (_BODY + r"project\.", _ORIGINAL_BODY + "feature_transformer.3."),
    (_BODY + r"norm\.", _ORIGINAL_BODY + "feature_transformer.4."),
    (_BODY + r"gru\.", _ORIGINAL_BODY + "temporal_processor."),
    (r"graph_builder\.phase\.edges\.weights", "phase_aware_processor.phase_difference_computer.phase_weights"),
    (r"graph_builder\.phase\.edges\.predictor\.", "phase_aware_processor.phase_difference_computer.edge_predictor."),
    (r"graph_builder\.phase\.scaler", "phase_aware_processor.inter_celestial_attention.phase_scaler"),
    (r"graph_builder\.phase\.attention\.", "phase_aware_processor.inter_celestial_attention.attention."),
    # 2. embeddings
    (r"graph_builder\.embedding\.value\.", "enc_embedding.value_embedding.tokenConv."),
    (r"graph_builder\.embedding\.calendar\.tables\.(\w+)\.", r"enc_embedding.temporal_embedding.\1_embed."),
    (r"decoder_embedding\.value\.", "dec_embedding.value_embedding.tokenConv."),
    (r"decoder_embedding\.calendar\.tables\.(\w+)\.", r"dec_embedding.temporal_embedding.\1_embed."),
    (r"graph_builder\.market_context\.hidden\.", "market_context_encoder.0."),
    (r"graph_builder\.market_context\.output\.", "market_context_encoder.2."),
    (r"graph_builder\.market_context\.norm\.", "market_context_encoder.3."),
    # 3. and 4. body nodes and fusion
    (r"graph_builder\.body_nodes\.embeddings", "celestial_nodes.body_embeddings"),
    (r"graph_builder\.body_nodes\.market\.", "celestial_nodes.market_encoder."),
    (r"graph_builder\.body_nodes\.aspects\.", "celestial_nodes.aspect_strength_net."),
    (r"graph_builder\.body_nodes\.transforms\.", "celestial_nodes.body_transforms."),
    (r"graph_builder\.body_fusion\.(query|key|value|output)\.", r"celestial_\1_projection."),
    (r"graph_builder\.body_fusion\.(attention|gate)\.", r"celestial_fusion_\1."),
    # 5. adjacencies
    (r"graph_builder\.mixer\.hidden\.", "adj_weight_mlp.0."),
    (r"graph_builder\.mixer\.output\.", "adj_weight_mlp.2."),
    (r"graph_builder\.learner\.hidden\.", "traditional_graph_learner.0."),
    (r"graph_builder\.learner\.output\.", "traditional_graph_learner.2."),
    (r"graph_builder\.learner\.mean\.", "stochastic_mean."),
    (r"graph_builder\.learner\.log_variance\.", "stochastic_logvar."),
    # 6. combiner
    (
        r"graph_builder\.combiner\.layers\.(\d+)\.attention\.",
        r"celestial_combiner.fusion_layers_net.\1.self_attention.",
    ),
    (
        r"graph_builder\.combiner\.layers\.(\d+)\.context_attention\.value\.",
        r"celestial_combiner.fusion_layers_net.\1.cross_attention.in_proj_",
        "value",
    ),
    (
        r"graph_builder\.combiner\.layers\.(\d+)\.context_attention\.output\.",
        r"celestial_combiner.fusion_layers_net.\1.cross_attention.out_proj.",
    ),
    (r"graph_builder\.combiner\.layers\.", "celestial_combiner.fusion_layers_net."),
    (r"graph_builder\.combiner\.output\.", "celestial_combiner.output_projection."),
    (
        r"graph_builder\.combiner\.interactions\.(\w+)\.values\.",
        r"celestial_combiner.pairwise_interactions.\1.interaction_net.",
    ),
    (
        r"graph_builder\.combiner\.interactions\.(\w+)\.modulation\.",
        r"celestial_combiner.pairwise_interactions.\1.context_modulation.0.",
    ),
    (r"graph_builder\.combiner\.calibration\.", "celestial_combiner.edge_calibrator.calibration_net."),
    (r"graph_builder\.combiner\.", "celestial_combiner."),
    # 7. encoder
    (r"encoder\.node_projection\.", "dynamic_spatiotemporal_encoder.node_feature_projection."),
    (r"encoder\.spatial_positions", "dynamic_spatiotemporal_encoder.spatial_pos_encoding", "first"),
    (r"encoder\.temporal_positions", "dynamic_spatiotemporal_encoder.temporal_pos_encoding", "first"),
    (r"encoder\.(temporal|spatial)_convolutions\.", r"dynamic_spatiotemporal_encoder.\1_convs."),
    (r"encoder\.temporal_norm\.", "dynamic_spatiotemporal_encoder.layer_norm1."),
    (r"encoder\.spatial_norm\.", "dynamic_spatiotemporal_encoder.layer_norm2."),
    (r"encoder\.output_norm\.", "dynamic_spatiotemporal_encoder.layer_norm3."),
    (r"encoder\.interaction_gate\.", "dynamic_spatiotemporal_encoder.spatial_gate."),
    (r"encoder\.attention_gate\.", "dynamic_spatiotemporal_encoder.temporal_gate."),
    (r"encoder\.interaction", "dynamic_spatiotemporal_encoder.spatial_temporal_interaction"),
    (r"encoder\.attention\.", "dynamic_spatiotemporal_encoder.spatial_temporal_cross_attention."),
    (r"encoder\.", "dynamic_spatiotemporal_encoder."),
    (r"readout\.", "dynamic_spatiotemporal_encoder.node_feature_back_projection."),
    # 8. graph processing
    (r"processing\.covariate_interaction\.", "covariate_interaction_layer."),
    (r"processing\.target_fusion\.", "target_fusion_layer."),
    (r"processing\.layers\.(\d+)\.adjacency_scale", r"graph_attention_layers.\1.adjacency_adaptation"),
    (r"processing\.layers\.", "graph_attention_layers."),
    # 9. decoder
    (r"decoder\.", "decoder_layers."),
    # 10. heads and mapping
    (r"head\.layers\.", "mixture_decoder.transformer_decoder.layers."),
    (r"head\.norm\.", "mixture_decoder.pre_mixture_norm."),
    (r"head\.(means|log_stds|log_weights)\.", r"mixture_decoder.mixture_heads.\1."),
    (r"head\.", "projection."),
    (r"mapping\.convolution\.", "hierarchical_mapper.temporal_conv."),
    (r"mapping\.norm\.", "hierarchical_mapper.conv_norm."),
    (r"mapping\.layers\.", "hierarchical_mapper.attention_stack.layers."),
    (r"mapping\.node_projection\.", "hierarchical_mapper.spatial_projection."),
    (r"mapping\.projection\.", "hierarchical_projection."),
)
"""Prefix of our parameter names, its replacement in the original layout, and the part (see `Source`) if it is not the
whole parameter. The first matching rule applies."""


def _source(ours: str) -> Source:
    for pattern, replacement, *part in _RULES:
        name, matched = re.subn(rf"^{pattern}", replacement, ours)
        if matched:
            return Source(name, *part)
    raise KeyError(f"no rule maps parameter {ours} to the original layout: add one to {__name__}")


def sources(ours: Iterable[str]) -> dict[str, Source]:
    """Return our parameter name -> its source in the original layout."""
    return {name: _source(name) for name in ours}
