"""Sections 3 and 4 with aspects, body networks and fusion rewritten (rewrites 3, 5, 6 and 8).

Body networks: with the market state e and the parameters W1, b1, W2, b2 of body b,

    W1 (embedding_b + e) + b1 = W1 e + (W1 embedding_b + b1)

The first layers of all bodies are therefore one product D -> N D of one input, plus a constant. The second layers are
one batched product. The backward pass recomputes both and the fusion. Sections 3 and 4 keep tensors of the size of e
and of the aspects, and the body features once.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_fast.data.bodies import BODIES
from pgat_fast.model.numerics import at_least_float32, gate
from pgat_fast.model.optimized.fast_module import FastModule, recomputed, stack_parameters
from pgat_fast.model.reference.body_nodes import BodyFusion, BodyNodes
from pgat_kernels.dispatch import wanted
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.affine import Affine, compose
from pgat_kernels.ops.aspects import aspects, pair_terms
from pgat_kernels.ops.grouped import grouped_layer_norm, grouped_linear
from pgat_kernels.ops.query_attention import QueryAttentionWeights, query_side_attention


class FastBodyNodes(FastModule, BodyNodes):
    """Aspects between bodies and features of each body, computed from the market state."""

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return dynamic adjacency [B, S, N, N] with diagonal 1 and body features [B, S, N, D] for e [B, S, D]."""
        states = e.flatten(0, 1)  # [M, D] with M = B * S
        inner, inner_bias, outer, outer_bias = self.aspects.parameters()
        x, constants = pair_terms(self.market(states), self.embeddings, inner, inner_bias)
        kernels = wanted(self.execution.kernels, "aspects", at_least_float32(x), len(constants))
        adjacency = aspects(x, constants, outer.flatten(), outer_bias, kernels).to(e.dtype)
        networks = stack_parameters(self.transforms[body] for body in BODIES)
        features = recomputed(_body_features, states, self.embeddings, *networks)
        return adjacency.unflatten(0, e.shape[:2]), features.unflatten(0, e.shape[:2])


def _body_features(
    states: Tensor, embeddings: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, norm: Tensor, norm_bias: Tensor
) -> Tensor:
    """Return LayerNorm(W2 gelu(W1 (embedding + state))) of every body: [M, D] -> [M, N, D], in the product dtype."""
    constants = grouped_linear(embeddings[:, None], w1, b1)  # [N, 1, D]
    hidden = F.gelu(F.linear(states, w1.flatten(0, 1), constants.flatten())).unflatten(1, embeddings.shape)
    y = grouped_linear(hidden.transpose(0, 1), w2, b2)  # [N, M, D]
    return grouped_layer_norm(y, norm, norm_bias).to(y.dtype).transpose(0, 1).contiguous()


class FastBodyFusion(FastModule, BodyFusion):
    """Gated attention of the market state to the bodies, with one query and N keys a timestep.

    `query`, `key` and `value` are composed with the input projections of the attention, and `output` with its output
    projection, each to one map. No keys or values of single bodies are computed.
    """

    def forward(self, e: Tensor, bodies: Tensor) -> Tensor:
        """Return the market state [B, S, D] for market state e [B, S, D] and body features [B, S, N, D]."""
        rate = self.attention.dropout if self.training else 0.0
        seed = self.seed(rate, e.device)

        def fuse(states: Tensor, tokens: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *w: Tensor) -> Tensor:
            n_heads = self.attention.num_heads
            f = query_side_attention(states, tokens, QueryAttentionWeights(*w), n_heads, rate, seed)[:, 0]
            hidden = F.gelu(F.linear(torch.cat((states, f), dim=-1), w1, b1))
            g = gate(F.linear(hidden, w2, b2))
            return states + (g * f).to(states.dtype)

        tokens = bodies.flatten(0, 1)[:, None]  # [B * S, 1, N, D]
        fused = recomputed(fuse, e.flatten(0, 1), tokens, *self.gate.parameters(), *self._attention_weights())
        return fused.unflatten(0, e.shape[:2])

    def _attention_weights(self) -> QueryAttentionWeights:
        """Return the composed maps in the precision of the parameters, so that autocast rounds only the results."""
        attention = self.attention
        with no_autocast(attention.in_proj_weight.device):
            query, key, value = map(Affine, attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3))
            return QueryAttentionWeights(
                *compose(Affine(*self.query.parameters()), query),
                *compose(Affine(*self.key.parameters()), key),
                *compose(Affine(*self.value.parameters()), value),
                *compose(Affine(*attention.out_proj.parameters()), Affine(*self.output.parameters())),
            )
