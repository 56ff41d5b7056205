"""Before kernels are timed they are compared with the reference: what is right passes, what is wrong is named."""

import pytest
import torch
from torch import nn

from bench import parity
from bench.variants import Variant
from pgat_fast.config.schema import Config


@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_kernels_that_are_right_may_be_timed(combiner: str) -> None:
    parity.require_parity.cache_clear()
    parity.require_parity("triton", combiner)


def test_kernels_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    build = parity.build

    def planted(config: Config, variant: Variant) -> nn.Module:
        model = build(config, variant)
        if variant.backend == "triton":
            model.get_submodule("readout").register_forward_hook(lambda module, inputs, y: y * torch.tensor(1.001))
        return model

    monkeypatch.setattr(parity, "build", planted)
    parity.require_parity.cache_clear()
    with pytest.raises(parity.ParityError, match=r"the forecast by kernels is off by .*: nothing is timed that"):
        parity.require_parity("triton", "batched")
    parity.require_parity.cache_clear()
