"""Specification of a backend that benchmarks compare: `NAME[:WORD...]`, a backend and how it is run.

    reference                 the plain model, eager, in the configuration's precision
    reference:fused           attention called without weights, so that torch uses its fused attention where it has one
    reference:compiled        under `torch.compile`, unchanged
    reference:heap            freed memory kept for reuse, as by the fast backend on a CPU (`pgat_kernels.malloc`)
    reference:kept            nothing recomputed in the backward pass: more memory
    torch                     compiled or not, as `run.compile` decides for a long run; `run.recompute=on`
    torch:kept                `run.recompute=off`
    torch:compiled            compiled as by `run.compile=on`: on a CPU only the operators
    torch:whole               the whole model compiled, on a CPU too
    torch:eager:bf16          not compiled, products in bfloat16

The precisions are those of `run.precision`; the default is the configuration's.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

import torch
from torch import nn

from bench.result_files import ROOT
from pgat_fast import build_model, load_config
from pgat_fast.config.schema import Config
from pgat_fast.errors import ConfigError
from pgat_fast.model import BACKENDS, resolve_backend
from pgat_fast.model.compilation import compile_in_place, decide_compile, regions_on
from pgat_fast.model.execution import Execution
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision
from pgat_kernels.dispatch import Kernels
from pgat_kernels.malloc import keep_freed_memory

Parsed = TypeVar("Parsed")

QUICKSTART: Final = str(ROOT / "configs" / "quickstart.yaml")
PRODUCTION: Final = {
    "batched": str(ROOT / "configs" / "production_batched.yaml"),
    "hierarchical": str(ROOT / "configs" / "celestial_enhanced_pgat_production.yaml"),
}
"""Combiner -> its production configuration."""

NAMES: Final = tuple(name for name in BACKENDS if name != "auto")
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
COMPILE_WORDS: Final = ("compiled", "whole", "eager")
OF_REFERENCE: Final = ("fused", "heap")
"""Words that only `reference` accepts."""
PLAIN_WORDS: Final = ("kept", *OF_REFERENCE)
"""Words that do not exclude each other."""
WORDS: Final = (*PRECISIONS, *COMPILE_WORDS, *PLAIN_WORDS)
"""All words that may follow a name."""

LONG_RUN: Final = 10**9
"""Number of steps assumed where `run.compile: auto` decides whether to compile."""


@dataclass(frozen=True)
class BackendSpec:
    """A backend and how it is run.

    Attributes:
        backend: one of `NAMES`.
        precision: precision of products; None for the configuration's.
        compiled: whether `torch.compile` is used; None leaves it to the configuration, and for the reference means no.
        whole: whether the whole model is compiled, not only its operators.
        fused: whether attention is called without weights.
        kept: whether everything that the backward pass needs is kept; otherwise the combiner is recomputed, and in the
            fast model the graph attention too.
        heap: whether a reference keeps freed memory for reuse.
    """

    backend: str
    precision: Precision | None = None
    compiled: bool | None = None
    whole: bool = False
    fused: bool = False
    kept: bool = False
    heap: bool = False

    def __str__(self) -> str:
        words = [self.backend]
        words += [self.precision] if self.precision else []
        words += [] if self.compiled is None else [self.compile_word]
        words += [word for word in PLAIN_WORDS if getattr(self, word)]
        return ":".join(words)

    @property
    def compile_word(self) -> str:
        """The word of `COMPILE_WORDS` for this backend; meaningful only if `compiled` is not None."""
        return ("whole" if self.whole else "compiled") if self.compiled else "eager"

    def overrides(self) -> list[str]:
        """Return the settings of this specification, as `load_config` takes them."""
        settings = [f"run.backend={self.backend}"]
        settings += [f"run.precision={self.precision}"] if self.precision else []
        settings.append(f"run.recompute={'off' if self.kept else 'on'}")  # `auto` depends on the free memory
        if self.backend == "reference":  # compiled by `compile_module`: a run never compiles it
            settings.append("run.compile=off")
        elif self.compiled is not None:
            setting = {"compiled": "on", "whole": "whole", "eager": "off"}[self.compile_word]
            settings.append(f"run.compile={setting}")
        return settings


def parse_spec(text: str) -> BackendSpec:
    """Parse `NAME[:WORD...]`. Raises argparse.ArgumentTypeError, which lists the valid words."""
    name, *words = text.split(":")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"{text!r}: {name!r} is not a backend; choose one of {', '.join(NAMES)}")
    allowed = tuple(word for word in WORDS if word not in (("whole",) if name == "reference" else OF_REFERENCE))
    for word in words:
        if word not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r}: {word!r} cannot follow {name}; use {', '.join(allowed)}")
    for kind in (PRECISIONS, COMPILE_WORDS, *((word,) for word in PLAIN_WORDS)):
        matches = [word for word in words if word in kind]
        if len(matches) > 1:
            raise argparse.ArgumentTypeError(f"{text!r}: only one of {', '.join(kind)} can be given")
    precision = next((precision for precision in PRECISIONS if precision in words), None)
    compiled = "eager" not in words if set(words) & set(COMPILE_WORDS) else None
    return BackendSpec(name, precision, compiled, **{word: word in words for word in ("whole", *PLAIN_WORDS)})


def parse_specs(text: str) -> list[BackendSpec]:
    """Parse a comma-separated list of distinct backends. Raises argparse.ArgumentTypeError as `parse_spec` does."""
    specs = [parse_spec(part) for part in text.split(",")]
    if len(set(specs)) < len(specs):
        raise argparse.ArgumentTypeError(f"{text!r} names a backend twice")
    return specs


def given(parse: Callable[[str], Parsed], option: str, text: str) -> Parsed:
    """Return `parse(text)` for an option of `pgat-fast`. Raises ConfigError, which names it, for an invalid value."""
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{option}: {error}") from error


def configure(spec: BackendSpec, config: str, overrides: list[str]) -> Config:
    """Return the configuration in the file `config` with `overrides` and the settings of a backend.

    Raises BackendError if the backend cannot run here, ConfigError if a setting is invalid.
    """
    resolve_backend(spec.backend)
    return load_config(config, [*overrides, *spec.overrides()])


def is_compiled(config: Config, spec: BackendSpec, device: torch.device) -> bool:
    """Return whether a backend is compiled on `device`; `config` is as returned by `configure`.

    Raises BackendError if the backend is to be compiled and cannot be compiled here.
    """
    if spec.backend == "reference":
        return bool(spec.compiled)
    regions = decide_compile(config.run.compile, spec.backend, device, expected_steps=LONG_RUN, seconds_per_step=1.0)
    return regions != "none"


def build(config: Config, spec: BackendSpec, compiled: bool = False) -> nn.Module:
    """Return the model of a backend on the CPU, in training mode, not compiled yet.

    Args:
        config: as returned by `configure`.
        spec: the backend to build.
        compiled: whether the model, or a part of it, will be passed to `compile_module`.
    """
    model = build_model(config, backend=spec.backend).train()
    if isinstance(model, FastPGAT):
        execution = Execution.of(config.run, compiled=compiled, kernels=Kernels(spec.backend == "triton"))
        model.set_execution(replace(execution, keep=sys.maxsize if spec.kept else 0))
    if spec.fused:
        use_fused_attention(model)
    if spec.kept and spec.backend == "reference":
        combiner = model.get_submodule("graph_builder.combiner")
        combiner.recompute = False  # type: ignore[assignment]  # a flag among modules and tensors
    if spec.heap:
        keep_freed_memory()
    return model


def compile_module(module: nn.Module, spec: BackendSpec, device: torch.device) -> None:
    """Compile a model or a part of it: the reference as a user would, graph breaks allowed, others as training does."""
    if spec.backend == "reference":
        module.compile(dynamic=False)
    else:
        compile_in_place(module, device, regions=regions_on(device, whole=spec.whole))


def use_fused_attention(model: nn.Module) -> None:
    """Call every `nn.MultiheadAttention` without weights, the usual manual way to get fused attention.

    torch then uses `scaled_dot_product_attention`. On a CPU it is fused only without dropout; with dropout torch still
    computes the weights.
    """

    def without_weights(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "need_weights": False}

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(without_weights, with_kwargs=True)
