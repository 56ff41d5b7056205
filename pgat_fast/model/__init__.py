"""The model: one architecture, several backends that compute the same function of the same parameters."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgat_fast.config import Config, load_config
from pgat_fast.errors import BackendError

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "torch", "triton")

_NOT_HERE = "not part of this version"


def backend_reasons() -> dict[str, str | None]:
    """Backend -> why it cannot run here, in words; None where it can. `auto` takes the last one that can."""
    return {"reference": None, "torch": None, "triton": _NOT_HERE}


def resolve_backend(backend: str) -> str:
    """Turn `auto` into the backend that will run; raise BackendError where the one asked for cannot."""
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}, not one of {', '.join(BACKENDS)}")
    reasons = backend_reasons()
    if backend == "auto":
        return [name for name, reason in reasons.items() if reason is None][-1]
    if reasons[backend] is not None:
        raise BackendError(f"backend {backend!r} is {reasons[backend]}; use 'reference' or 'auto'")
    return backend


def build_model(config: Config | Mapping[str, Any], backend: str | None = None) -> "nn.Module":
    """Build the forecaster with freshly drawn parameters (torch's global generator), on the CPU, in training mode.

    Args:
        config: a resolved configuration, or a mapping as `load_config` takes it.
        backend: `reference`, `torch`, `triton` or `auto`; `config.run.backend` by default.

    Returns:
        A module called as `model(x_enc, x_mark_enc, x_dec, x_mark_dec) -> (forecast, diagnostics)`; see
        `pgat_fast.model.reference.pgat.PGAT.forward`. Parameter names do not depend on the backend.

    Raises:
        BackendError: the backend cannot run here, with the reason.
        ConfigError: the mapping is not a valid configuration.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    asked = backend or config.run.backend
    chosen = resolve_backend(asked)
    logger.info("backend %s%s", chosen, f" (asked for: {asked})" if asked != chosen else "")
    if chosen == "reference":
        from pgat_fast.model.reference.pgat import PGAT

        return PGAT(config.model)
    from pgat_fast.model.execution import Execution
    from pgat_fast.model.fast.pgat import FastPGAT

    return FastPGAT(config.model, Execution.of(config.run))
