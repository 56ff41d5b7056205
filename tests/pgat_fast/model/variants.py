"""Small models that together use every setting, and inputs for them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import Config, build_model, load_config
from pgat_fast.model.forecast import Diagnostics, Forecast, Mixture, mixture_nll

SMALL: dict[str, Any] = {
    "seq_len": 7,
    "label_len": 3,
    "pred_len": 2,
    "d_model": 26,
    "n_heads": 2,
    "e_layers": 2,
    "d_layers": 1,
    "celestial_fusion_layers": 1,
}
NO_BODIES: dict[str, Any] = SMALL | {
    "use_celestial_graph": False,
    "enc_in": 6,
    "dec_in": 5,
    "c_out": 2,
    "d_model": 22,
}
EVERYTHING: dict[str, Any] = {
    "use_mixture_decoder": True,
    "use_stochastic_learner": True,
    "use_hierarchical_mapping": True,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "hierarchical": SMALL,
    "hierarchical original, 2 blocks": SMALL | {"compatibility": "original", "celestial_fusion_layers": 2},
    "batched": SMALL | {"combiner": "batched"},
    "batched original, 3 blocks": SMALL
    | {"combiner": "batched", "compatibility": "original", "fusion_layers": 3, "d_layers": 2},
    "batched attention": SMALL | {"combiner": "batched", "graph_processing": "attention"},
    "hierarchical attention, bias": SMALL | {"graph_processing": "attention", "adjacency_bias": True},
    "batched attention, bias, threshold": SMALL
    | {
        "combiner": "batched",
        "graph_processing": "attention",
        "adjacency_bias": True,
        "adjacency_threshold": 0.2,
        "compatibility": "original",
    },
    "batched everything": SMALL | EVERYTHING | {"combiner": "batched", "freq": "t"},
    "hierarchical everything, joint": SMALL
    | EVERYTHING
    | {"mdn_multivariate_mode": "joint", "graph_processing": "attention", "mdn_components": 2},
    "mapping of a long history": SMALL
    | {"combiner": "batched", "use_hierarchical_mapping": True, "seq_len": 16, "compatibility": "original"},
    "stochastic": SMALL | {"combiner": "batched", "use_stochastic_learner": True},
    "1 head, odd width": SMALL | {"n_heads": 1, "d_model": 13, "combiner": "batched"},
    "4 heads": SMALL | {"n_heads": 4, "phase_edges": "zero"},
    "16 heads": SMALL
    | {"n_heads": 16, "combiner": "batched", "fusion_layers": 1, "feature_map": "positional", "seq_len": 5},
    "1 target, no label": SMALL | {"c_out": 1, "label_len": 0, "combiner": "batched", "freq": "h"},
    "no bodies": NO_BODIES,
    "no bodies, attention, bias": NO_BODIES | {"graph_processing": "attention", "adjacency_bias": True},
    "no bodies, everything": NO_BODIES | EVERYTHING | {"n_heads": 3, "compatibility": "original"},
}
"""Name of a variant -> settings of the model."""

FEW = (
    "batched original, 3 blocks",
    "hierarchical attention, bias",
    "hierarchical everything, joint",
    "no bodies, everything",
)
"""Variants that together run every part, for slow tests."""

FEW_FIRST = [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in FEW)]
"""All variants as parameters of a test; those not in `FEW` are marked slow."""


def config_of(variant: str, **changes: Any) -> Config:
    """Return the configuration of a variant with some settings changed."""
    return load_config(VARIANTS[variant] | changes)


def model_of(variant: str = FEW[0], seed: int = 0) -> nn.Module:
    """Return a model with parameters drawn from `seed`."""
    torch.manual_seed(seed)
    return build_model(config_of(variant))


def inputs_of(
    config: Config, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x_enc, x_mark_enc, x_dec, x_mark_dec, drawn in float64 and then converted to `dtype`."""
    model, generator = config.model, torch.Generator().manual_seed(seed)
    columns = 5 if model.freq == "t" else 4
    steps = model.label_len + model.pred_len

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    def marks(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return (
        values(batch, model.seq_len, model.enc_in),
        marks(batch, model.seq_len, columns),
        values(batch, steps, model.dec_in),
        marks(batch, steps, columns),
    )


def loss_of(config: Config, result: tuple[Forecast, Diagnostics]) -> Tensor:
    """Return the training loss: the forecast's loss for random targets, plus the KL divergence."""
    forecast, diagnostics = result
    shape = (forecast.means if isinstance(forecast, Mixture) else forecast).shape[:3]
    target = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    if isinstance(forecast, Mixture):
        loss = mixture_nll(forecast, target, config.model.mdn_multivariate_mode)
    else:
        loss = (forecast - target).square().mean()
    if "kl_divergence" in diagnostics:
        loss = loss + config.training.kl_weight * diagnostics["kl_divergence"]
    return loss


def tensors_of(result: tuple[Forecast, Diagnostics]) -> list[Tensor]:
    """Return the tensors of the forecast."""
    forecast = result[0]
    return list(forecast) if isinstance(forecast, Mixture) else [forecast]
