"""Faulty models, for tests of the checks that must detect them."""

import pytest
from torch import nn

from bench import parity
from bench.backend_spec import BackendSpec
from pgat_fast.config.schema import Config


def plant(monkeypatch: pytest.MonkeyPatch, backend: str, part: str) -> None:
    """Make `bench.parity` build models of `backend` whose `part` returns a thousandth too much."""
    build = parity.build

    def planted(config: Config, spec: BackendSpec) -> nn.Module:
        model = build(config, spec)
        if spec.backend == backend:
            model.get_submodule(part).register_forward_hook(lambda module, inputs, y: 1.001 * y)
        return model

    monkeypatch.setattr(parity, "build", planted)
