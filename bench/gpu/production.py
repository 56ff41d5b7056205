"""The production models on a machine with torch and triton alone, where no configuration file can be read.

`production.json` holds the settings of `configs/`, as `load_config` reads them; a test compares them.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from torch import nn

from pgat_fast.sizes import Sizes

CONFIGS: Final = {
    "batched": "configs/production_batched.yaml",
    "hierarchical": "configs/celestial_enhanced_pgat_production.yaml",
    "quickstart": "configs/quickstart.yaml",
}
"""Names of the settings in `production.json`, and the configuration files."""
FILE: Final = Path(__file__).with_name("production.json")


class ModelSettings(SimpleNamespace, Sizes):
    """The settings of a model as attributes."""


def settings_of(name: str, **changes: Any) -> tuple[Any, Any]:
    """Return the sections `model` and `training` of one of `CONFIGS`, with other values of `model` in `changes`.

    They have the attributes of `pgat_fast.config.ModelConfig` and `TrainingConfig`, but check nothing.
    """
    sections = json.loads(FILE.read_text(encoding="utf-8"))[name]
    return ModelSettings(**sections["model"] | changes), SimpleNamespace(**sections["training"])


def build(backend: str, model: Any) -> nn.Module:
    """Return a model with these settings, `reference`, `torch` or `triton`, on the CPU in training mode."""
    if backend == "reference":
        from pgat_fast.model.reference.pgat import PGAT

        return PGAT(model)
    from pgat_fast.model.execution import Execution
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_kernels.dispatch import Kernels

    return FastPGAT(model, Execution(kernels=Kernels(backend == "triton")))
