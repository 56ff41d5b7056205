"""The model: one architecture and several backends that compute the same function of the same parameters."""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgat_fast.errors import BackendError

if TYPE_CHECKING:
    from torch import nn

    from pgat_fast.config import Config
    from pgat_fast.model.compilation import Regions
    from pgat_fast.model.execution import Execution
    from pgat_fast.model.kernel_choice import KernelChoice

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "torch", "triton")

AUTO = "torch"
"""The backend that `auto` selects. On a GPU it uses kernels, see `kernel_choice`."""


def backend_reasons() -> dict[str, str | None]:
    """Return backend -> the reason why it cannot run on this machine, or None if it can."""
    import torch

    from pgat_kernels.dispatch import interpreted, why_no_kernels

    device = torch.device("cuda" if torch.cuda.is_available() and not interpreted() else "cpu")
    return {"reference": None, "torch": None, "triton": why_no_kernels(device)}


def resolve_backend(backend: str) -> str:
    """Return the backend to run, with `auto` resolved; raise BackendError if it is unknown or cannot run here."""
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}, not one of {', '.join(BACKENDS)}")
    if backend == "auto":
        return AUTO
    reason = backend_reasons()[backend]
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot run here: {reason}; use 'torch' or 'auto'")
    return backend


def build_model(
    config: "Config | Mapping[str, Any]", backend: str | None = None, *, kernels: "KernelChoice | None" = None
) -> "nn.Module":
    """Build the forecaster on the CPU in training mode, with parameters drawn from torch's global generator.

    Args:
        config: a resolved configuration, or a mapping as accepted by `load_config`.
        backend: `reference`, `torch`, `triton` or `auto`; `config.run.backend` by default.
        kernels: with the backend `auto`: which operators use kernels; by default what the table of the package says.

    Returns:
        A module called as `model(x_enc, x_mark_enc, x_dec, x_mark_dec) -> (forecast, diagnostics)`; see
        `pgat_fast.model.reference.pgat.PGAT.forward`. Parameter names do not depend on the backend.

    Raises:
        BackendError: the backend cannot run here; the message gives the reason.
        ConfigError: the mapping is not a valid configuration.
    """
    from pgat_fast.config import Config, load_config

    if not isinstance(config, Config):
        config = load_config(config)
    requested = backend or config.run.backend
    resolved = resolve_backend(requested)
    logger.info("backend %s%s", resolved, f" (run.backend: {requested})" if requested != resolved else "")
    if resolved == "reference":
        from pgat_fast.model.reference.pgat import PGAT

        return PGAT(config.model)
    from pgat_fast.model.execution import Execution
    from pgat_fast.model.kernel_choice import listed_choice
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_fast.utils.device import resolve_device
    from pgat_kernels.dispatch import Kernels

    chosen = Kernels.OFF
    if resolved == "triton":
        _check_device(config.run.device)
        chosen = Kernels.ON
    elif requested == "auto":
        choice = kernels or listed_choice(resolve_device(config.run.device))
        choice.log()
        chosen = choice.kernels
    if chosen:
        _log_head_width(config.model.d_model // config.model.n_heads)
    return FastPGAT(config.model, Execution.of(config.run, kernels=chosen))


def kernel_summary(model: "nn.Module") -> str:
    """Return which operators use kernels: `none`, `all`, or `listed` with a digest of the table of the package."""
    from pgat_fast.model.kernel_choice import described
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_kernels.dispatch import Kernels

    return described(model.execution.kernels if isinstance(model, FastPGAT) else Kernels.OFF)


def recompute_summary(execution: "Execution", regions: "Regions") -> str:
    """Describe what the operators of a model keep for the backward pass if `regions` are compiled."""
    keep = execution.keep
    if execution.combiner_chunk is None:
        return "combiner and graph attention keep all intermediate results, because run.combiner_chunk is off"
    if keep == 0 or regions == "whole":
        reason = "" if keep == 0 else ", as in every step compiled whole"
        return f"combiner and graph attention are computed again in the backward pass{reason}"
    amount = "all intermediate results" if keep == sys.maxsize else f"up to {keep / 2**30:.1f} GiB each"
    return f"combiner and graph attention keep {amount} for the backward pass"


def _log_head_width(width: int) -> None:
    """Log that heads of `width` columns are too wide for the kernels of attention, if they are."""
    from pgat_kernels.ops.graph_attention import MOST_DEPTH

    if width > MOST_DEPTH:
        logger.info(
            "attention is computed in plain torch: heads have %d columns, kernels accept at most %d", width, MOST_DEPTH
        )


def _check_device(device: str) -> None:
    """Raise BackendError if the requested kernels do not run on `device`."""
    from pgat_fast.utils.device import resolve_device
    from pgat_kernels.dispatch import why_no_kernels

    reason = why_no_kernels(resolve_device(device))
    if reason is not None:
        raise BackendError(f"backend 'triton' with run.device={device}: {reason}; use run.backend=torch or auto")
