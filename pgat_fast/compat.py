"""Drop-in replacement for the existing model, with its checkpoints, settings and call signature.

    from pgat_fast.compat import Model

replaces the import of the existing model; see `examples/drop_in.py`.
"""

import logging
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor, nn

from pgat_fast.config import Config, ModelConfig, load_config
from pgat_fast.config.legacy import IGNORED, OLD_NAMES
from pgat_fast.config.schema import SECTION_OF
from pgat_fast.errors import CheckpointError, ConfigError, name_some
from pgat_fast.model import build_model
from pgat_fast.model.forecast import Diagnostics, Forecast
from pgat_fast.model.reference.pgat import PGAT, rename_former
from pgat_fast.model.replica import call_with_parameters
from pgat_fast.original_layout import Source, original_shapes, sources

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]


class TranslatedState(dict[str, Tensor]):
    """State dict in our layout, with the tensors that exist only in the original layout as an attribute.

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
    """Raise one CheckpointError for missing, unknown and misshapen names, or values that are no tensors, with some."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the state is a {type(state).__name__}: pass a dict of name -> tensor")
    nested = [str(name) for name, value in state.items() if isinstance(value, Mapping)]
    if nested:
        raise CheckpointError(f"{nested[0]!r} is a dict, not a tensor: pass state[{nested[0]!r}]")
    non_tensors = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]
    if non_tensors:
        raise CheckpointError(f"not tensors: {name_some(non_tensors)}")
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
        lines += [f"  {title} ({len(names)}): {name_some(names)}"] if names else []
    if any(name.startswith("module.") or name.startswith("_orig_mod.") for name in unknown):
        lines.append("  names begin with 'module.' or '_orig_mod.': remove the wrapper's prefix first")
    configured, other = (
        ("batched", "hierarchical") if config.model.combiner == "batched" else ("hierarchical", "batched")
    )
    marker = "celestial_combiner.edge_projection.weight" if other == "batched" else "celestial_combiner.edge_attention"
    if any(name.startswith(marker) for name in unknown):
        lines.append(f"  it was trained with combiner: {other}, but the configuration has combiner: {configured}")
    if any("feature_attention" in fault for fault in misshapen) and config.model.feature_map == "named":
        lines.append(
            "  existing checkpoints were trained with compatibility: original, but the configuration has corrected"
        )
    raise CheckpointError("\n".join(lines))


def _take(tensor: Tensor, source: Source) -> Tensor:
    if source.part == "value":
        return tensor[2 * (tensor.shape[0] // 3) :]
    return tensor[0] if source.part == "first" else tensor


def from_original_layout(state: State, config: Config | Mapping[str, Any]) -> TranslatedState:
    """Translate a state dict from the original layout to ours.

    Every value is one of the given tensors or a view of one, so gradients flow back to the original names.

    Args:
        state: original name -> tensor, for every name of the layout that `config` implies; any device and dtype.
        config: the configuration of the model that will load the result.

    Returns:
        A dict that `build_model(config).load_state_dict` loads strictly. Its attribute `unused` holds the tensors
        that do not enter the computation; `to_original_layout` puts them back.

    Raises:
        CheckpointError: names are unknown, missing or misshapen; the message lists some of each kind.
    """
    config = _resolve(config)
    _check(state, original_shapes(config.model), "the original layout", config)
    places = sources(_our_shapes(config))
    translated = TranslatedState({our_name: _take(state[source.name], source) for our_name, source in places.items()})
    fully_used = {source.name for source in places.values() if source.part != "value"}
    translated.unused = {name: tensor for name, tensor in state.items() if name not in fully_used}
    return translated


def to_original_layout(
    state: State, config: Config | Mapping[str, Any], unused: State | None = None
) -> dict[str, Tensor]:
    """Translate a state dict from our layout to the original one, complete and in the original order.

    Args:
        state: our name -> tensor, as returned by `model.state_dict()` or `from_original_layout`, of this or an earlier
            version.
        config: the configuration of the model.
        unused: values of the parameters that exist only in the original layout (see `TranslatedState`). Default: those
            that `from_original_layout` attached to `state`, and initial values for the others.

    Returns:
        Original name -> tensor. Gradients flow back to `state`.

    Raises:
        CheckpointError: names are unknown, missing or misshapen; the message lists some of each kind.
    """
    config = _resolve(config)
    shapes = _our_shapes(config)
    unused_values = dict(unused if unused is not None else getattr(state, "unused", {}))
    if isinstance(state, Mapping):
        state = dict(state)
        rename_former(state)
    _check(state, shapes, "this model", config)
    original = original_shapes(config.model)
    unused_shapes = {name: shape for name, shape in original.items() if name in unused_values}
    _check(unused_values, unused_shapes, "the original layout", config)
    example = next(iter(state.values()))
    translated: dict[str, Tensor] = {}
    for our_name, source in sources(shapes).items():
        tensor = state[our_name]
        if source.part == "value":
            packed = unused_values.get(source.name)
            if packed is None:
                packed = _initial_value(source.name, original[source.name]).to(tensor)
            tensor = torch.cat((packed[: 2 * (packed.shape[0] // 3)].to(tensor), tensor))
        translated[source.name] = tensor.unsqueeze(0) if source.part == "first" else tensor
    for name, shape in original.items():
        if name not in translated:
            translated[name] = unused_values[name] if name in unused_values else _initial_value(name, shape).to(example)
    return {name: translated[name] for name in original}


def _initial_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return an initial value for an unused parameter; it depends on its name and shape only."""
    tensor = torch.empty(shape)
    if len(shape) >= 2:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return nn.init.xavier_uniform_(tensor, generator=generator)
    return nn.init.zeros_(tensor) if "bias" in name.rpartition(".")[2] else nn.init.ones_(tensor)


class Model(nn.Module):
    """The existing model's interface to the backends of this package.

    The module has the parameters of the original layout: the same names, shapes, order and count, including the unused
    ones. Existing checkpoints load strictly, `state_dict()` is in that layout, and an existing optimizer state fits
    `parameters()`. The forward pass gives the backend views of these parameters.

    `compatibility: original` and `exact_dropout` are the defaults here and nowhere else: replacing the import must
    change neither a result nor the distribution of one.

    Args:
        args: the existing settings, a namespace or a dict. Settings of the model, `backend`, `combiner_chunk`,
            `recompute` and `exact_dropout` are read, under their existing names; all others are ignored. Existing
            settings do not include the combiner: set `combiner` to `hierarchical` (the default, the
            12,310,208-parameter layout) or `batched`.

    Several threads may call a model at once, in training or evaluation mode; each call reads the parameters and the
    mode when it begins. As with any module, nothing may change the parameters meanwhile.

    `modules()` contains modules that only hold parameters, not the dropout and other layers. For several GPUs use
    `DistributedDataParallel`, one process each, with `find_unused_parameters=True` because of the unused parameters;
    `nn.DataParallel` cannot copy this module.

    Raises:
        ConfigError: a setting of the model is invalid.
        BackendError: the backend cannot run here.
    """

    def __init__(self, args: Namespace | Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = load_config(_model_settings(args))
        forecaster = build_model(self.settings)
        initial = to_original_layout(forecaster.state_dict(), self.settings)
        for name, tensor in initial.items():
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
        for module in forecaster.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to("meta")))
        # The tuple keeps the forecaster, whose parameters are placeholders, from becoming a submodule.
        self._forecaster = (forecaster,)
        self._places = sources(name for name, _ in forecaster.named_parameters())

    def forward(
        self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor
    ) -> tuple[Forecast, Diagnostics]:
        """Return the forecast [B, P, c_out], or (means, log-stds, log-weights), and named intermediate results.

        For the shapes see `pgat_fast.model.reference.pgat.PGAT.forward`.
        """
        parameters = dict(self.named_parameters())
        tensors = {our_name: _take(parameters[source.name], source) for our_name, source in self._places.items()}
        return call_with_parameters(self._forecaster[0], tensors, (x_enc, x_mark_enc, x_dec, x_mark_dec))

    def train(self, mode: bool = True) -> Self:
        self._forecaster[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(device)`, `.double()` etc. must also convert the forecaster's buffers; its parameters are placeholders.
        for module in self._forecaster[0].modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, fn(buffer))
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch


def _model_settings(args: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in `args` that define the model, under their existing names."""
    if not isinstance(args, Mapping) and not hasattr(args, "__dict__"):
        raise ConfigError(f"args is a {type(args).__name__}: pass a namespace or a dict of settings")
    arguments = dict(args) if isinstance(args, Mapping) else vars(args)
    accepted = set(ModelConfig.model_fields) | {"backend", "combiner_chunk", "recompute", "exact_dropout"}
    accepted |= {name for name, old in OLD_NAMES.items() if getattr(old, "setting", "").startswith("model.")}
    skipped = sorted(name for name in arguments if name not in accepted)
    if skipped:
        logger.info("settings ignored, since they do not define the model: %s", ", ".join(skipped))
    for name in set(skipped) - IGNORED - set(OLD_NAMES) - set(SECTION_OF):
        for suggestion in get_close_matches(name, accepted - set(arguments), n=1, cutoff=0.85):
            logger.warning("setting %s is ignored: did you mean %s?", name, suggestion)
    # In a namespace None stands for an option that was not given.
    settings = {name: arguments[name] for name in arguments if name in accepted and arguments[name] is not None}
    return {"compatibility": "original", "exact_dropout": True} | settings
