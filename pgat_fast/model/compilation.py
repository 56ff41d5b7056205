"""Compilation of a model for training with `torch.compile`. Evaluation is never compiled.

`Regions` names what can be compiled. On a CPU, `run.compile=on` and `auto` compile only the operators: the steps around
dropout between two matrix products, a dozen small functions shared by all layers. The matrix products are library calls
in any case, so compiling the whole model (`run.compile=whole`) takes three times as long and gains little. On CUDA the
whole training step is compiled, to reduce the number of kernel launches.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pgat_fast.errors import BackendError
from pgat_fast.model.compile_cache import cache_advice
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_kernels.process_settings import LOCK
from pgat_kernels.torch_features import compile_apart

if TYPE_CHECKING:
    from pgat_fast.config.schema import Config

logger = logging.getLogger(__name__)

Regions = Literal["none", "operators", "whole"]
"""Compiled regions: nothing, the operators of the fast model, or the whole model including them."""

COMPILE_SECONDS: Final = {"cpu": 30.0, "cuda": 150.0}
"""Device -> compile time before the first step. On a CPU: the operators of the quickstart with an empty cache, 21 to
29 s on two cores of about 100 GFLOP/s. On a GPU: the time for a whole model on a CPU; not measured."""

EXPECTED_SPEEDUP: Final = {"cpu": 1.1, "cuda": 1.5}
"""Device -> seconds of an eager step / seconds of a compiled one. On a CPU: 1.12 for the operators of the quickstart
without recomputation, 0.95 and 1.10 at production sizes (`bench/results/amd-epyc-zen3-2-cores/*/step_*.json`). On a
GPU: not measured."""

STEP_SECONDS: Final = {
    ("cpu", "batched"): 2.8,
    ("cpu", "hierarchical"): 14.0,
    ("cuda", "batched"): 0.02,
    ("cuda", "hierarchical"): 0.1,
}
"""Device, combiner -> seconds of the eager forward and backward pass of one window at production sizes. CPU values are
measured; the others are estimates that distinguish minutes from hours."""

_PRODUCTION_FLOPS: Final = 2.85e11
"""FLOPs of the first entry of `STEP_SECONDS`
(`bench/results/amd-epyc-zen5-2-cores/2026-11-23/step_batched_batch1.json`)."""

_PRODUCTION: Final = {"days": 250, "width": 208, "nodes": 13, "batched": 2, "hierarchical": 4}
"""Model sizes of `STEP_SECONDS`; the entry of a combiner is its number of blocks."""


def expected_batch_seconds(config: "Config", device: torch.device) -> float:
    """Estimate the seconds of one eager batch; the time is proportional to the dominant matrix products.

    With the celestial graph these are the combiner's; without it the encoder's, with a token for each input and day.

    The estimate only distinguishes minutes from hours. It depends on the settings alone, so that all ranks take the
    same decision.
    """
    model, combiner = config.model, config.model.combiner
    if not model.use_celestial_graph:
        tokens, width = model.seq_len * model.nodes, model.embed_dim
        flops = 14 * tokens**2 * width + 60 * tokens * width**2  # attention; linear maps and convolutions
        return config.training.batch_size * flops / _PRODUCTION_FLOPS * STEP_SECONDS[device.type, "batched"]
    blocks = model.fusion_layers if combiner == "batched" else model.celestial_fusion_layers
    days, width, nodes = (_PRODUCTION[name] for name in ("days", "width", "nodes"))
    scale = model.seq_len / days * (model.embed_dim / width) ** 2 * (model.nodes / nodes) ** 2
    scale *= blocks / _PRODUCTION[combiner] * config.training.batch_size
    return scale * STEP_SECONDS[device.type, combiner]


def decide_compile(
    asked: str,
    backend: str,
    device: torch.device,
    *,
    expected_steps: int,
    seconds_per_step: float,
    compile_seconds: float | None = None,
    previous: Regions | None = None,
) -> Regions:
    """Return the regions to compile for training, and log the reason.

    Args:
        asked: `run.compile`.
        backend: the resolved backend, not `auto`.
        device: the device of the computation.
        expected_steps: optimizer steps of the run.
        seconds_per_step: approximate seconds of an eager step.
        compile_seconds: approximate seconds of compilation; `COMPILE_SECONDS` by default.
        previous: the decision at the start of a resumed run, which `auto` keeps.

    Raises BackendError, with the remedy, if `asked` is `on` or `whole` and the model cannot be compiled here.
    """
    if asked == "off":
        return "none"
    regions = regions_on(device, whole=asked == "whole")
    if asked == "auto":
        if previous is not None:
            logger.info("compile auto: %s compiled, as at the start of this run", IN_WORDS[previous])
            regions = previous
        elif not _pays(expected_steps, seconds_per_step, compile_seconds, device.type):
            regions = "none"
        if regions == "none":
            return "none"
    reason = why_not(backend, device)
    if reason is None:
        logger.info("compile %s: %s compiled during the first step", asked, IN_WORDS[regions])
        return regions
    if asked != "auto":
        raise BackendError(f"run.compile is {asked}, but {reason}")
    logger.info("compile auto: not compiled: %s", reason)
    return "none"


def regions_on(device: torch.device, *, whole: bool = False) -> Regions:
    """Return the regions to compile on `device`: the operators on a CPU, the whole model with `whole` and on CUDA."""
    return "whole" if whole or device.type == "cuda" else "operators"


IN_WORDS: Final[dict[Regions, str]] = {"none": "nothing is", "operators": "operators are", "whole": "the whole step is"}


def _pays(steps: int, seconds_per_step: float, compile_seconds: float | None, device: str) -> bool:
    eager = steps * seconds_per_step
    saved = eager * (1 - 1 / EXPECTED_SPEEDUP[device])
    cost = COMPILE_SECONDS[device] if compile_seconds is None else compile_seconds
    pays = saved > cost
    logger.info(
        "compile auto: %d steps take about %.0f s, of which compiling would save %.0f s and cost %.0f s%s",
        steps, eager, saved, cost, "" if pays else ": not compiled",
    )  # fmt: skip
    return pays


def why_not(backend: str, device: torch.device) -> str | None:
    """Return why `backend` cannot be compiled for `device` and what to do about it, or None if it can.

    Checks the requirements of torch's compiler, then compiles one small function, which takes some seconds.
    """
    if backend == "reference":
        return "the backend reference cannot be compiled: use run.backend=torch or auto, or set run.compile=off"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "no working triton is installed: install the one of this torch, or set run.compile=off"
    else:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return (
                "no C++ compiler is installed: install g++ (Debian: apt install g++) or clang++, set the environment "
                "variable CXX to its name, or set run.compile=off"
            )
    return _trial_failure(device)


def _trial_failure(device: torch.device) -> str | None:
    """Return why torch cannot compile a small function, or None if it can: an installed compiler may lack headers."""
    try:
        compiled = torch.compile(_trial, fullgraph=True, dynamic=False)
        compiled(torch.ones(64, device=device))
    except Exception as error:  # any error would recur in the first step
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The compiler's own message is more useful than the text around it.
        message = next((line for line in lines if "error:" in line), lines[0] if lines else "no reason given")
        return (
            f"torch cannot compile a small function here ({type(error).__name__}: {message[:300]}): repair that "
            f"(for a missing Python.h: apt install python3-dev), or set run.compile=off; {cache_advice()}"
        )
    return None


def _trial(x: Tensor) -> Tensor:
    return (2 * x + 1).relu().sum()


def compile_in_place(
    model: nn.Module,
    device: torch.device,
    *,
    regions: Regions = "whole",
    graphs: bool = True,
) -> None:
    """Compile `regions` of `model` for `device` in place; names of parameters and modules do not change.

    Compilation takes place in the first forward and backward pass, and again for every new input shape: use only one
    shape. A graph break raises an error. On CUDA, with `graphs`, the passes are replayed as CUDA graphs
    (`reduce-overhead`). Random numbers are those of eager execution, so that dropout masks are the same. A process may
    compile any number of models: see `compile_apart`.
    """
    _compile_operators(model, regions != "none")
    if regions != "whole":
        return
    options: dict[str, Any] = {"fallback_random": True}
    if device.type == "cuda" and graphs:
        options |= torch._inductor.list_mode_options("reduce-overhead")  # torch takes a mode or options, not both
    model._compiled_call_impl = compile_apart(model._call_impl, fullgraph=True, dynamic=False, options=options)


def _compile_operators(model: nn.Module, compiled: bool) -> None:
    """Enable or disable compiled code in the operators of the fast model; the reference has none."""
    if isinstance(model, FastPGAT):
        model.set_execution(replace(model.execution, compiled=compiled))


def is_compiled(model: nn.Module) -> bool:
    """Return whether calling `model` runs compiled code."""
    return compiled_regions_of(model) != "none"


def compiled_regions_of(model: nn.Module) -> Regions:
    """Return which regions of `model` are compiled."""
    if model._compiled_call_impl is not None:
        return "whole"
    return "operators" if _has_compiled_operators(model) else "none"


def _has_compiled_operators(model: nn.Module) -> bool:
    return isinstance(model, FastPGAT) and model.execution.compiled


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run `model` without its compiled code within the context: for other shapes, evaluation or hooks.

    Several threads may evaluate one model: the last of them restores the compiled code.
    """
    with LOCK:
        state = _eager_models.get(model)
        if state is None:
            state = _eager_models[model] = _Eager(model._compiled_call_impl, _has_compiled_operators(model))
            if is_compiled(model):
                undo_compilation(model)
        state.contexts += 1
    try:
        yield
    finally:
        with LOCK:
            state.contexts -= 1
            if state.contexts == 0:
                del _eager_models[model]
                if state.call is not None or state.operators:
                    model._compiled_call_impl = state.call
                    _compile_operators(model, state.operators)


@dataclass
class _Eager:
    """The compiled code of a model that runs eagerly."""

    call: Any
    operators: bool
    contexts: int = 0


_eager_models: "WeakKeyDictionary[nn.Module, _Eager]" = WeakKeyDictionary()


def undo_compilation(model: nn.Module) -> None:
    """Remove the compiled code of `model`, which runs eagerly from then on."""
    model._compiled_call_impl = None
    _compile_operators(model, False)
