"""What a benchmark compares: `NAME[:WORD...]`, a backend and how it is run.

    reference                 the plain model, eager, in the configuration's precision
    reference:fused           its attention without weights, so that torch takes its fused attention where it has one
    reference:compiled        under `torch.compile`, as it is
    reference:heap            freed memory kept for reuse, as the fast backend has it on a CPU (`pgat_kernels.malloc`)
    reference:kept            nothing computed again in the backward pass: more memory
    torch                     compiled or not, as `run.compile` says for a long run; `run.recompute=on`
    torch:kept                `run.recompute=off`
    torch:compiled            as `run.compile=on` compiles it: on a CPU the operators alone
    torch:whole               the whole model compiled, on a CPU too
    torch:eager:bf16          not compiled, products in bfloat16

A precision is one of `run.precision`; without one it is the configuration's.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

import torch
from torch import nn

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

NAMES: Final = tuple(name for name in BACKENDS if name != "auto")
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
COMPILE_WORDS: Final = ("compiled", "whole", "eager")
OF_REFERENCE: Final = ("fused", "heap")
"""What may follow `reference` only."""
PLAIN_WORDS: Final = ("kept", *OF_REFERENCE)
"""Each of them by itself, not one of several."""
WORDS: Final = (*PRECISIONS, *COMPILE_WORDS, *PLAIN_WORDS)
"""What may follow a name."""

LONG_RUN: Final = 10**9
"""Steps of the run for which `run.compile: auto` decides here."""


@dataclass(frozen=True)
class Variant:
    """A backend and how it is run.

    Attributes:
        backend: one of `NAMES`.
        precision: of products; None is the configuration's.
        compiled: whether by `torch.compile`; None is what the configuration says, and no for the reference.
        whole: whether all of the model is compiled, not the operators alone.
        fused: whether attention is called without weights.
        kept: whether all that the backward pass needs is kept; else the combiner is computed again, and by the fast
            model the graph attention.
        heap: whether a reference keeps freed memory.
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
        """One of `COMPILE_WORDS`, where something is said."""
        return ("whole" if self.whole else "compiled") if self.compiled else "eager"

    def overrides(self) -> list[str]:
        """The settings that it stands for, as `load_config` takes them."""
        found = [f"run.backend={self.backend}"]
        found += [f"run.precision={self.precision}"] if self.precision else []
        found.append(f"run.recompute={'off' if self.kept else 'on'}")  # `auto` depends on the memory that is free
        if self.backend == "reference":  # compiled by `build`: a run never compiles it
            found.append("run.compile=off")
        elif self.compiled is not None:
            setting = {"compiled": "on", "whole": "whole", "eager": "off"}[self.compile_word]
            found.append(f"run.compile={setting}")
        return found


def parse_variant(text: str) -> Variant:
    """Read `NAME[:WORD...]`. Raises argparse.ArgumentTypeError with the words that there are."""
    name, *words = text.split(":")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"{text!r}: {name!r} is no backend; there are {', '.join(NAMES)}")
    allowed = tuple(word for word in WORDS if word not in (("whole",) if name == "reference" else OF_REFERENCE))
    for word in words:
        if word not in allowed:
            raise argparse.ArgumentTypeError(f"{text!r}: {word!r} cannot follow {name}; {', '.join(allowed)} can")
    for kind in (PRECISIONS, COMPILE_WORDS, *((word,) for word in PLAIN_WORDS)):
        given = [word for word in words if word in kind]
        if len(given) > 1:
            raise argparse.ArgumentTypeError(f"{text!r}: only one of {', '.join(kind)} can be given")
    precision = next((precision for precision in PRECISIONS if precision in words), None)
    compiled = "eager" not in words if set(words) & set(COMPILE_WORDS) else None
    return Variant(name, precision, compiled, **{word: word in words for word in ("whole", *PLAIN_WORDS)})


def parse_variants(text: str) -> list[Variant]:
    """Read a comma list of different variants; errors as `parse_variant`."""
    variants = [parse_variant(part) for part in text.split(",")]
    if len(set(variants)) < len(variants):
        raise argparse.ArgumentTypeError(f"{text!r} names a variant twice")
    return variants


def given(parse: Callable[[str], Parsed], option: str, text: str) -> Parsed:
    """What `parse` makes of an option of `pgat-fast`. Raises ConfigError, with its name, where that is wrong."""
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{option}: {error}") from error


def parse_precisions(text: str) -> list[Precision]:
    """Read a comma list of precisions. Raises argparse.ArgumentTypeError."""
    words = text.split(",")
    for word in words:
        if word not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"{word!r} is no precision; there are {', '.join(PRECISIONS)}")
    return [precision for precision in PRECISIONS if precision in words]


def in_precisions(variants: list[Variant], precisions: list[Precision]) -> list[Variant]:
    """Each of `variants` that names no precision in each of `precisions`, if there are any; nothing twice."""
    found: dict[Variant, None] = {}
    for variant in variants:
        for precision in precisions if precisions and not variant.precision else [variant.precision]:
            found[replace(variant, precision=precision)] = None
    return list(found)


def configure(variant: Variant, config: str, overrides: list[str]) -> Config:
    """The configuration in the file `config` with `overrides`, as `variant` runs it.

    Raises BackendError where the backend cannot run here, ConfigError where a setting is wrong.
    """
    resolve_backend(variant.backend)
    return load_config(config, [*overrides, *variant.overrides()])


def is_compiled(config: Config, variant: Variant, device: torch.device) -> bool:
    """Whether `variant` is compiled on `device`; `config` as `configure` gives it.

    Raises BackendError where the backend is to be compiled and cannot be here.
    """
    if variant.backend == "reference":
        return bool(variant.compiled)
    regions = decide_compile(config.run.compile, variant.backend, device, expected_steps=LONG_RUN, seconds_per_step=1.0)
    return regions != "none"


def build(config: Config, variant: Variant, compiled: bool = False) -> nn.Module:
    """The model of `variant` on the CPU, in training mode, not compiled yet.

    Args:
        config: as `configure` gives it.
        variant: what to build.
        compiled: whether it, or a part of it, will be given to `compile_module`.
    """
    model = build_model(config, backend=variant.backend).train()
    if isinstance(model, FastPGAT):
        execution = Execution.of(config.run, compiled=compiled, kernels=Kernels(variant.backend == "triton"))
        model.set_execution(replace(execution, keep=sys.maxsize if variant.kept else 0))
    if variant.fused:
        use_fused_attention(model)
    if variant.kept and variant.backend == "reference":
        model.get_submodule("graph.combiner").recompute = False  # type: ignore[assignment]
    if variant.heap:
        keep_freed_memory()
    return model


def compile_module(module: nn.Module, variant: Variant, device: torch.device) -> None:
    """Compile a model or a part of it: the reference as a user would, graph breaks allowed, others as training does."""
    if variant.backend == "reference":
        module.compile(dynamic=False)
    else:
        compile_in_place(module, device, regions=regions_on(device, whole=variant.whole))


def use_fused_attention(model: nn.Module) -> None:
    """Have every `nn.MultiheadAttention` called without weights: what one does by hand to get fused attention.

    torch then takes `scaled_dot_product_attention`. On a CPU that is fused only without dropout; with it torch computes
    the weights all the same.
    """

    def without_weights(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "need_weights": False}

    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(without_weights, with_kwargs=True)
