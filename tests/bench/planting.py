"""Faulty models, for tests of the checks that must detect them."""

import pytest
from torch import nn

from bench import parity
from bench.backend_spec import Variant
from pgat_fast.config.schema import Config


def plant(monkeypatch: pytest.MonkeyPatch, backend: str, part: str) -> None:
    """Make `bench.parity` build models of `backend` whose `part` returns a thousandth too much."""
    build = parity.build

    def planted(config: Config, variant: Variant) -> nn.Module:
        model = build(config, variant)
        if variant.backend == backend:
            model.get_submodule(part).register_forward_hook(lambda module, inputs, y: 1.001 * y)
        return model

    monkeypatch.setattr(parity, "build", planted)
