"""Distribution of forecasts under dropout: the fast model, with other masks, compared with the reference.

The position of each mask is tested operator by operator in `tests/pgat_kernels`; this test covers the whole model.
"""

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model
from tests.pgat_fast.model.variants import config_of, inputs_of

RATE = 0.35
SEEDS, COPIES = 6, 50
"""Each copy of a window in a batch has its own masks: 300 draws."""


def forecasts(variant: str, backend: str) -> Tensor:
    """Return the forecasts of one window: [draws, numbers of a forecast]."""
    config = config_of(variant, dropout=RATE, exact_dropout=True, seq_len=3, label_len=1)
    torch.manual_seed(0)
    model: nn.Module = build_model(config, backend=backend).train()
    for module in model.modules():
        if "Stochastic" in type(module).__name__:
            module.eval()
    inputs = [x[:1].repeat(COPIES, 1, 1) for x in inputs_of(config)]
    drawn = []
    with torch.no_grad():
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            forecast = model(*inputs)[0]
            first = forecast if isinstance(forecast, Tensor) else forecast[0]
            drawn.append(first.flatten(start_dim=1))
    return torch.cat(drawn)


@pytest.mark.parametrize(
    "variant",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("batched", "hierarchical everything, joint")),
        "no bodies",
    ],
)
def test_forecast_quartiles_are_near_those_of_the_reference(variant: str) -> None:
    expected, actual = forecasts(variant, "reference"), forecasts(variant, "torch")
    quarters = torch.tensor([0.25, 0.5, 0.75])
    low, middle, high = expected.quantile(quarters, dim=0)
    fast_low, fast_middle, fast_high = actual.quantile(quarters, dim=0)
    interquartile_range = high - low
    assert (interquartile_range > 0).all()
    # From 300 draws an interquartile range is known to 8 %, and a median to 5 % of that range.
    assert ((fast_high - fast_low) / interquartile_range).median().item() == pytest.approx(1, abs=0.2)
    assert ((fast_middle - middle) / interquartile_range).abs().median().item() < 0.2
