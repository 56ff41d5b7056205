"""Drop-in use: existing checkpoints, existing settings, the existing way to call the model.

    from pgat_fast.compat import Model

replaces the import of the existing model; `examples/drop_in.py` shows it.
"""

import logging
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgat_fast.checkpoint_layout import Source, original_shapes, sources
from pgat_fast.config import Config, ModelConfig, load_config
from pgat_fast.config.legacy import IGNORED, OLD_NAMES
from pgat_fast.config.schema import SECTION_OF
from pgat_fast.errors import CheckpointError, ConfigError
from pgat_fast.model import build_model
from pgat_fast.model.forecast import Diagnostics, Forecast
from pgat_fast.model.reference.pgat import PGAT

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]


class TranslatedState(dict[str, Tensor]):
    """A state dict in our layout that remembers what only the original layout has.

    Attributes:
        unused: original name -> tensor, for the parameters that the forward pass never reads, and for the packed
            attention weights of which only the value rows are used.
    """

    unused: dict[str, Tensor]


def _our_shapes(config: Config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = PGAT(config.model)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _resolve(config: Config | Mapping[str, Any]) -> Config:
    return config if isinstance(config, Config) else load_config(config)


def _check(state: Any, expected: Mapping[str, tuple[int, ...]], what: str, config: Config) -> None:
    """Raise one CheckpointError that lists every missing, unknown and misshapen name, and what is no tensor."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the state is a {type(state).__name__}: pass a dict of name -> tensor")
    inner = [str(name) for name, value in state.items() if isinstance(value, Mapping)]
    if inner:
        raise CheckpointError(f"{inner[0]!r} holds a dict of its own: pass that one (state[{inner[0]!r}])")
    wrong = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"not tensors: {'; '.join(wrong)}")
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != tuple(shape)
    ]
    if not (missing or unknown or misshapen):
        return
    lines = [f"the state dict does not fit {what}:"]
    for title, names in (("missing", missing), ("unknown", unknown), ("wrong shape", misshapen)):
        lines += [f"  {title} ({len(names)}): {'; '.join(names)}"] if names else []
    if any(name.startswith("module.") or name.startswith("_orig_mod.") for name in unknown):
        lines.append("  names begin with 'module.' or '_orig_mod.': remove the wrapper's prefix first")
    ours, other = ("batched", "hierarchical") if config.model.combiner == "batched" else ("hierarchical", "batched")
    marker = "celestial_combiner.edge_projection.weight" if other == "batched" else "celestial_combiner.edge_attention"
    if any(name.startswith(marker) for name in unknown):
        lines.append(f"  it was trained with combiner: {other}, the configuration says combiner: {ours}")
    if any("feature_attention" in fault for fault in misshapen) and config.model.feature_map == "named":
        lines.append(
            "  existing checkpoints were trained with compatibility: original; the configuration says corrected"
        )
    raise CheckpointError("\n".join(lines))


def _take(tensor: Tensor, source: Source) -> Tensor:
    if source.part == "value":
        return tensor[2 * (tensor.shape[0] // 3) :]
    return tensor[0] if source.part == "first" else tensor


def from_original_layout(state: State, config: Config | Mapping[str, Any]) -> TranslatedState:
    """Translate a state dict of the original layout into ours.

    Every value is a rename or a slice (a view) of the given tensors, so gradients flow back to the original names.

    Args:
        state: original name -> tensor, every name of the layout that `config` implies, on any device, any dtype.
        config: the configuration of the model that is to load it.

    Returns:
        A dict that `build_model(config).load_state_dict` takes strictly. What never enters the computation is in
        its `unused` attribute; `to_original_layout` puts it back.

    Raises:
        CheckpointError: lists all unknown, missing and misshapen names at once.
    """
    config = _resolve(config)
    _check(state, original_shapes(config.model), "the original layout", config)
    places = sources(_our_shapes(config))
    translated = TranslatedState({ours: _take(state[source.name], source) for ours, source in places.items()})
    whole = {source.name for source in places.values() if source.part != "value"}
    translated.unused = {name: tensor for name, tensor in state.items() if name not in whole}
    return translated


def to_original_layout(
    state: State, config: Config | Mapping[str, Any], unused: State | None = None
) -> dict[str, Tensor]:
    """Translate a state dict in our layout into the original one, complete and in the original order.

    Args:
        state: our name -> tensor, as `model.state_dict()` or `from_original_layout` gives it.
        config: the configuration of the model.
        unused: values of what only the original layout has (see `TranslatedState`). By default those that
            `from_original_layout` left in `state`, and initial values where there are none.

    Returns:
        Original name -> tensor. Gradients flow back to `state`.

    Raises:
        CheckpointError: lists all unknown, missing and misshapen names at once.
    """
    config = _resolve(config)
    shapes = _our_shapes(config)
    _check(state, shapes, "this model", config)
    original = original_shapes(config.model)
    carried = dict(unused if unused is not None else getattr(state, "unused", {}))
    held = {name: shape for name, shape in original.items() if name in carried}
    _check(carried, held, "the original layout", config)
    example = next(iter(state.values()))
    translated: dict[str, Tensor] = {}
    for ours, source in sources(shapes).items():
        tensor = state[ours]
        if source.part == "value":
            packed = carried.get(source.name)
            if packed is None:
                packed = _initial_value(source.name, original[source.name]).to(tensor)
            tensor = torch.cat((packed[: 2 * (packed.shape[0] // 3)].to(tensor), tensor))
        translated[source.name] = tensor.unsqueeze(0) if source.part == "first" else tensor
    for name, shape in original.items():
        if name not in translated:
            translated[name] = carried[name] if name in carried else _initial_value(name, shape).to(example)
    return {name: translated[name] for name in original}


def _initial_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """A value for a parameter that nothing reads, a function of its name alone."""
    tensor = torch.empty(shape)
    if len(shape) >= 2:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return nn.init.xavier_uniform_(tensor, generator=generator)
    return nn.init.zeros_(tensor) if "bias" in name.rpartition(".")[2] else nn.init.ones_(tensor)


class Model(nn.Module):
    """The existing model's interface over this project's backends.

    Its parameters ARE those of the original layout: the same names, shapes, order and count, the never-used ones
    included. So existing checkpoints load strictly, `state_dict()` is again in that layout, and an optimizer over
    `parameters()` (with its saved state) sees what it saw before. A forward pass hands views of them to the backend.

    `compatibility: original` and `exact_dropout` are the defaults here and nowhere else: swapping an import must not
    change a number, nor the distribution of one.

    Args:
        args: the existing settings, a namespace or a dict. Settings of the model, `backend`, `combiner_chunk`,
            `recompute` and `exact_dropout` are read, under their existing names; whatever else a script keeps there is
            left alone. Existing settings do not say which combiner was used: set `combiner` to `hierarchical` (the
            default, the 12,310,208-parameter layout) or `batched`.

    Its dropout and other layers are not among `modules()`, which hold parameters alone. For several GPUs use
    `DistributedDataParallel`, one process each, with `find_unused_parameters=True` as the never-used ones demand;
    `nn.DataParallel` cannot copy it.

    Raises:
        ConfigError: a setting of the model is wrong.
        BackendError: the backend cannot run here.
    """

    def __init__(self, args: Namespace | Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = load_config(_model_settings(args))
        forecaster = build_model(self.settings)
        initial = to_original_layout(forecaster.state_dict(), self.settings)
        for name, tensor in initial.items():
            *path, leaf = name.split(".")
            home: nn.Module = self
            for part in path:
                if part not in home._modules:
                    home.add_module(part, nn.Module())
                home = home.get_submodule(part)
            home.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
        for module in forecaster.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta")))
        # In a tuple, so that it is not a submodule: its parameters are placeholders.
        self._forecaster = (forecaster,)
        self._places = sources(name for name, _ in forecaster.named_parameters())

    def forward(
        self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor
    ) -> tuple[Forecast, Diagnostics]:
        """The forecast [B, P, c_out], or the triple (means, log-stds, log-weights); and named intermediate results.

        Shapes as in `pgat_fast.model.reference.pgat.PGAT.forward`.
        """
        own = dict(self.named_parameters())
        tensors = {ours: _take(own[source.name], source) for ours, source in self._places.items()}
        result: tuple[Forecast, Diagnostics]
        result = functional_call(self._forecaster[0], tensors, (x_enc, x_mark_enc, x_dec, x_mark_dec))
        return result

    def train(self, mode: bool = True) -> Self:
        self._forecaster[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(device)`, `.double()`, ...: the forecaster's buffers must follow; its parameters are placeholders.
        for module in self._forecaster[0].modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types


def _model_settings(args: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """Those of the script's settings that decide what the model is, under the names they have there."""
    if not isinstance(args, Mapping) and not hasattr(args, "__dict__"):
        raise ConfigError(f"args is a {type(args).__name__}: pass a namespace or a dict of settings")
    given = dict(args) if isinstance(args, Mapping) else vars(args)
    read = set(ModelConfig.model_fields) | {"backend", "combiner_chunk", "recompute", "exact_dropout"}
    read |= {name for name, old in OLD_NAMES.items() if getattr(old, "setting", "").startswith("model.")}
    left = sorted(name for name in given if name not in read)
    if left:
        logger.info("settings that do not concern the model, left alone: %s", ", ".join(left))
    for name in set(left) - IGNORED - set(OLD_NAMES) - set(SECTION_OF):
        for meant in get_close_matches(name, read - set(given), n=1, cutoff=0.85):
            logger.warning("setting %s is left alone: did you mean %s?", name, meant)
    # Namespaces hold None for what was not given.
    settings = {name: given[name] for name in given if name in read and given[name] is not None}
    return {"compatibility": "original", "exact_dropout": True} | settings
