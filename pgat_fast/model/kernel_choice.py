"""Which operators use kernels with the backend `auto`: by the table of the package, or by what a run has kept."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Final

import torch

from pgat_fast.errors import BackendError
from pgat_kernels.dispatch import Kernels, gpu_of, interpreted, why_no_kernels
from pgat_kernels.tuning_table import FILE, applying

logger = logging.getLogger(__name__)

_WORDS: Final = {Kernels.OFF: "none", Kernels.ON: "all", Kernels.LISTED: "listed"}


@dataclass(frozen=True)
class KernelChoice:
    """The operators that use kernels, and why."""

    kernels: Kernels
    reason: str | None
    """One line for the log; None where there is nothing to say: on a CPU."""
    level: int = logging.INFO

    def log(self) -> None:
        """Log the reason."""
        if self.reason is not None:
            logger.log(self.level, "backend auto: %s", self.reason)


def why_not(device: torch.device) -> KernelChoice | None:
    """Return the choice of no kernels where they cannot run; None if they can."""
    if device.type == "cpu" and not interpreted():
        return KernelChoice(Kernels.OFF, None)
    reason = why_no_kernels(device)
    return None if reason is None else KernelChoice(Kernels.OFF, f"no kernels: {reason}")


def listed_choice(device: torch.device) -> KernelChoice:
    """Return the kernels that the table of the package lists for `device`.

    Raises BackendError if the file of the table is invalid.
    """
    choice = why_not(device)
    if choice is not None:
        return choice
    gpu = gpu_of(device)
    try:
        entry = applying(gpu)
    except ValueError as error:
        raise BackendError(str(error)) from error
    if entry is None:
        reason = f"no kernels: nothing is known of them on {gpu}; `pgat-fast tune` finds out which are faster"
        return KernelChoice(Kernels.OFF, reason)
    return KernelChoice(Kernels.LISTED, f"the kernels that are listed as faster on {entry.device} ({entry.source})")


def described(kernels: Kernels) -> str:
    """Return `none`, `all`, or `listed` with a digest of the table of the package, as checkpoints and results hold."""
    digest = f" {hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]}" if kernels == Kernels.LISTED else ""
    return _WORDS[kernels] + digest


def kept_choice(description: str, device: torch.device) -> KernelChoice:
    """Return the kernels of a run on `device`.

    Args:
        description: what `described` returned when the run began; earlier versions wrote `measured` for `listed`.
        device: where the run continues.
    """
    word = description.partition(" ")[0].replace("measured", "listed")
    kernels = next((kernels for kernels, name in _WORDS.items() if name == word), Kernels.OFF)
    return why_not(device) or KernelChoice(kernels, f"{in_words(kernels)}, as when this run began")


def in_words(kernels: Kernels) -> str:
    """Return `no kernels`, `all kernels` or `the listed kernels`."""
    return {Kernels.OFF: "no kernels", Kernels.ON: "all kernels", Kernels.LISTED: "the listed kernels"}[kernels]
