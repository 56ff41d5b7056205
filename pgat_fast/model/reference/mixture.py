"""Section 10 of docs/model.md: mixture decoder, which forecasts a mixture of normal distributions."""

from torch import Tensor, nn

from pgat_fast.model.forecast import Mixture
from pgat_fast.model.reference.embedding import sinusoidal_positions
from pgat_fast.model.shapes import MAX_STEPS

LOG_STD_RANGE = (-10.0, 2.0)


class MixtureDecoder(nn.Module):
    """Two pre-norm transformer decoder blocks over the forecast days, and a linear head for each parameter."""

    positions: Tensor

    def __init__(self, width: int, n_heads: int, targets: int, components: int, dropout: float) -> None:
        super().__init__()
        self.targets, self.components = targets, components
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, n_heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.means = nn.Linear(width, targets * components)
        self.log_stds = nn.Linear(width, targets * components)
        self.log_weights = nn.Linear(width, components)
        self.register_buffer("positions", sinusoidal_positions(MAX_STEPS, width), persistent=False)

    def forward(self, d: Tensor, graph: Tensor) -> Mixture:
        """Return the mixture for decoder states of the forecast days [B, P, D] and graph features [B, S, D]."""
        steps = d.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(steps, device=d.device, dtype=d.dtype)
        d = d + self.positions[:steps]
        for layer in self.layers:
            d = layer(d, graph, tgt_mask=causal, tgt_is_causal=True)
        d = self.norm(d)
        shape = (self.targets, self.components)
        return Mixture(
            means=self.means(d).unflatten(-1, shape),
            log_stds=self.log_stds(d).unflatten(-1, shape).clamp(*LOG_STD_RANGE),
            log_weights=self.log_weights(d),
        )
