"""A spatio-temporal graph-attention forecaster with fast training.

The public names are imported on first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pgat_fast import compat
    from pgat_fast.config import Config, load_config
    from pgat_fast.forecasting.evaluate import evaluate
    from pgat_fast.forecasting.load_run import load_run
    from pgat_fast.forecasting.predict import predict
    from pgat_fast.model import build_model
    from pgat_fast.training.run import train

_HOME = {
    "Config": "pgat_fast.config",
    "load_config": "pgat_fast.config",
    "build_model": "pgat_fast.model",
    "train": "pgat_fast.training.run",
    "load_run": "pgat_fast.forecasting.load_run",
    "predict": "pgat_fast.forecasting.predict",
    "evaluate": "pgat_fast.forecasting.evaluate",
}

__all__ = [
    "Config",
    "__version__",
    "build_model",
    "compat",
    "evaluate",
    "load_config",
    "load_run",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "compat":
        return import_module("pgat_fast.compat")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
