"""The model: one architecture and several backends that compute the same function of the same parameters."""

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgat_fast.config import Config, load_config
from pgat_fast.errors import BackendError

if TYPE_CHECKING:
    from torch import nn

    from pgat_fast.model.compilation import Regions
    from pgat_fast.model.execution import Execution

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "reference", "torch", "triton")

AUTO = "torch"
"""The backend that `auto` selects. On a GPU it uses the kernels that were measured to be faster there."""


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


def build_model(config: Config | Mapping[str, Any], backend: str | None = None) -> "nn.Module":
    """Build the forecaster on the CPU in training mode, with parameters drawn from torch's global generator.

    Args:
        config: a resolved configuration, or a mapping as accepted by `load_config`.
        backend: `reference`, `torch`, `triton` or `auto`; `config.run.backend` by default.

    Returns:
        A module called as `model(x_enc, x_mark_enc, x_dec, x_mark_dec) -> (forecast, diagnostics)`; see
        `pgat_fast.model.reference.pgat.PGAT.forward`. Parameter names do not depend on the backend.

    Raises:
        BackendError: the backend cannot run here; the message gives the reason.
        ConfigError: the mapping is not a valid configuration.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    requested = backend or config.run.backend
    resolved = resolve_backend(requested)
    logger.info("backend %s%s", resolved, f" (run.backend: {requested})" if requested != resolved else "")
    if resolved == "reference":
        from pgat_fast.model.reference.pgat import PGAT

        return PGAT(config.model)
    from pgat_fast.model.execution import Execution
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_kernels.dispatch import Kernels

    kernels = Kernels.OFF
    if resolved == "triton":
        _check_device(config.run.device)
        kernels = Kernels.ON
    elif requested == "auto" and _has_measured_kernels(config.run.device):
        kernels = Kernels.MEASURED
    if kernels:
        _log_head_width(config.model.d_model // config.model.n_heads)
    return FastPGAT(config.model, Execution.of(config.run, kernels=kernels))


def _has_measured_kernels(device: str) -> bool:
    """Return whether `auto` may use kernels on `device`; on a GPU, log the reason.

    Raises BackendError if the file of measurements is invalid.
    """
    from pgat_fast.utils.device import resolve_device
    from pgat_kernels.dispatch import gpu_of, why_no_kernels
    from pgat_kernels.tuning_table import measured

    resolved = resolve_device(device)
    if resolved.type != "cuda":
        return False
    reason = why_no_kernels(resolved)
    gpu = gpu_of(resolved)
    try:
        measurements = measured(gpu)
    except ValueError as error:
        raise BackendError(str(error)) from error
    if reason is None and (measurements is None or not measurements.from_rows):
        reason = f"none has been measured on {gpu}; run make tune"
    if reason is not None:
        logger.info("backend auto uses no kernels: %s", reason)
        return False
    assert measurements is not None
    logger.info("backend auto: kernels where they were measured to be faster on %s", measurements.device)
    return True


def kernel_summary(model: "nn.Module") -> str:
    """Return which operators use kernels: `none`, `all`, or `measured` with a digest of the file of measurements."""
    import hashlib

    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_kernels.dispatch import Kernels
    from pgat_kernels.tuning_table import FILE

    if not isinstance(model, FastPGAT) or model.execution.kernels == Kernels.OFF:
        return "none"
    if model.execution.kernels == Kernels.ON:
        return "all"
    return f"measured {hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]}"


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
