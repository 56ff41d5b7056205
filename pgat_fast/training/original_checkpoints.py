"""Import and export of checkpoints in the original layout, that of the existing model."""

import io
import logging
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pgat_fast.compat import from_original_layout, to_original_layout
from pgat_fast.config import Config, config_to_dict, dump_config, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.errors import CheckpointError, ConfigError, name_some
from pgat_fast.original_layout import original_shapes
from pgat_fast.training.checkpoint import Checkpoint, choose_checkpoint, read_checkpoint, save_checkpoint
from pgat_fast.training.checkpoint_files import read_file
from pgat_fast.training.inert_pickle import Placeholder
from pgat_fast.training.manifest import MANIFEST
from pgat_fast.training.run_folder import CHECKPOINTS
from pgat_fast.training.run_metadata import describe_run
from pgat_fast.training.serialization import check_dense, dump_tensors, parse_tensors
from pgat_fast.training.state import Progress
from pgat_fast.training.torch_file import read_torch_file
from pgat_fast.training.weight_search import USUAL_KEYS, find_weights, label_of
from pgat_fast.utils.io import write_atomically

logger = logging.getLogger(__name__)

_SAFETENSORS: Final = ".safetensors"
_TORCH: Final = (".pth", ".pt")

_BYTES_PER_PARAMETER: Final = 64
_SPARE: Final = 64 * 2**20
"""Largest file that is read: eight float64 copies of the parameters, such as weights, averages of them and the state of
an optimizer, and `_SPARE` bytes for everything else."""


def export_checkpoint(path: Path, out: Path, which: str = "best") -> Path:
    """Write the weights of a run or checkpoint in the original layout; return the path of the exported checkpoint.

    Args:
        path: folder of a run, or of one of its checkpoints.
        out: `FILE.pth` or `FILE.pt` for `torch.save`, or `FILE.safetensors`; an existing file is replaced.
        which: for a run, `best`, `latest` or the name of a checkpoint.

    `compat.to_original_layout` sets the weights that only the original layout has and that its forward pass never
    reads.

    Raises CheckpointError if the checkpoint cannot be read or exported, or `out` cannot be written.
    """
    if out.suffix not in (*_TORCH, _SAFETENSORS):
        raise CheckpointError(f"{out}: unknown format: name the file *.pth (for torch.save) or *{_SAFETENSORS}")
    checkpoint_path, checkpoint = _choose(path, which)
    try:
        config = load_config(checkpoint.about.get("config") or {})
        state = to_original_layout(checkpoint.weights, config)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint_path}: cannot be exported: {error}") from error
    if out.suffix == _SAFETENSORS:
        content = dump_tensors(state)
    else:
        buffer = io.BytesIO()
        torch.save({name: tensor.detach().clone() for name, tensor in state.items()}, buffer)
        content = buffer.getvalue()
    try:
        write_atomically(out, content)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error
    return checkpoint_path


def _choose(path: Path, which: str) -> tuple[Path, Checkpoint]:
    if (path / MANIFEST).exists():
        return path, read_checkpoint(path, training=False)
    root = path if path.name == CHECKPOINTS else path / CHECKPOINTS
    chosen = choose_checkpoint(root, which)
    if chosen is None:
        raise CheckpointError(f"{path}: no checkpoint there can be read: give the folder of a run or of a checkpoint")
    return chosen


def import_checkpoint(file: Path, config: Config, out: Path, key: str | None = None) -> Path:
    """Create the run folder `out` with the weights in `file`; return the path of its only checkpoint.

    The checkpoint can be evaluated, used to predict, and trained further (`train --resume`) with a fresh optimizer,
    since its `training` is empty. Columns are scaled by the training rows of the configured data file.

    Args:
        file: weights in the original layout, from `torch.save` or as safetensors. They may be anywhere in the file,
            beside other objects, with a prefix before all names, or those of a module that was saved whole. Nothing
            in the file is executed.
        config: configuration of the model that the weights are for. Its run gets the name and the place of `out`.
        out: a folder that does not exist or is empty.
        key: which weights to take if the file holds several, for example `ema`.

    Raises CheckpointError if the file is invalid or the folder exists, ConfigError or DataError if the settings or the
    data file are invalid. Then nothing was written.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise CheckpointError(f"{out}: exists already and is not empty: choose another --out; no run is overwritten")
    weights = _read_original(file, config, key)
    run_folder = out.absolute()
    run = config_to_dict(config)["run"] | {"name": run_folder.name, "output": str(out.parent)}
    config = load_config(config_to_dict(config) | {"run": run})
    table, splits = load_splits(config.data, config.model, torch.device("cpu"))
    name = Progress().name
    checkpoint = Checkpoint(
        weights=weights,
        about=describe_run(config, table, splits)
        | {"epoch": 0, "step": 0, "best": name, "validation_loss": None, "imported": str(file)},
    )
    existed = out.is_dir()
    try:
        path = save_checkpoint(out / CHECKPOINTS, name, checkpoint)
        write_atomically(out / "config.yaml", dump_config(config).encode())
    except BaseException as error:
        for leftover in (out / CHECKPOINTS, *([] if existed else [out])):
            shutil.rmtree(leftover, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error
        raise
    return path


def _read_original(file: Path, config: Config, key: str | None) -> dict[str, Tensor]:
    """Return the weights in `file` in the layout of this package, as float32."""
    shapes = original_shapes(config.model)
    limit = _BYTES_PER_PARAMETER * sum(map(prod, shapes.values())) + _SPARE
    if file.is_dir():
        raise CheckpointError(
            f"{file}: a folder, not a file. A distributed checkpoint becomes a file by "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(file))} weights.pth`"
        )
    raw = read_file(file, limit, follow_links=True)
    try:
        content = _parse(raw, file)
        weights = from_original_layout(_state_of(content, shapes, file, key), config)
        # Messages of `compat` describe the state dict; the name of the file is added below.
        return {name: _as_float32(tensor, name) for name, tensor in weights.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _parse(raw: bytes, file: Path) -> Any:
    """Return the content of a file of safetensors or of `torch.save`."""
    if file.suffix == _SAFETENSORS:
        return parse_tensors(raw)[0]
    if raw[:1].isspace() or raw[:1] == b"{":
        shards = sorted(set(re.findall(rb'": *"([^"/]+\.(?:safetensors|bin|pth?))"', raw)))
        if shards:
            names = ", ".join(name.decode(errors="replace") for name in shards[:10])
            raise CheckpointError(
                f"an index of {len(shards)} files ({names}{', ...' if len(shards) > 10 else ''}), which are not merged "
                "here: load each with safetensors.torch.load_file (or torch.load), update one dict with all of them, "
                'and save that with `torch.save(weights, "weights.pth")`'
            )
    if raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") < len(raw):  # safetensors under another name
        return parse_tensors(raw)[0]
    return read_torch_file(raw)


def _state_of(content: Any, expected: Iterable[str], file: Path, key: str | None) -> Any:
    """Return the state dict in `content`, without what surrounds it, or the part that a message should describe."""
    candidate = find_weights(content, expected, key)
    if candidate is None:
        if isinstance(content, Placeholder):
            raise CheckpointError(
                f"holds an object of {content.kind.replace(' ', '.')}, in which no weights were recognised: save its "
                "state dict: `torch.save(model.state_dict(), FILE)`"
            )
        state = _unwrapped(content, file)
        values = state.values() if isinstance(state, Mapping) else ()
        if any(isinstance(value, Placeholder) and "numpy" in value.kind for value in values):
            raise CheckpointError(
                "holds NumPy arrays in place of tensors: convert them with "
                '`torch.save({name: torch.as_tensor(array) for name, array in weights.items()}, "weights.pth")`'
            )
        return state
    if candidate.path:
        path = ".".join(candidate.path)
        logger.info("%s: reading the weights under the key %r; other keys are ignored", file, path)
    if candidate.prefix and candidate.others:
        shown = name_some(candidate.others)
        logger.info("%s: removing the prefix %r; names without it are ignored: %s", file, candidate.prefix, shown)
    elif candidate.prefix:
        logger.info("%s: removing the prefix %r from all names", file, candidate.prefix)
    return candidate.tensors


def _unwrapped(state: Any, file: Path) -> Any:
    """Return the state dict that may be nested in a dict with other content."""
    for _ in USUAL_KEYS:
        key = next(
            (key for key in USUAL_KEYS if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)), None
        )
        if key is None:
            break
        logger.info("%s: reading the weights under the key %r; other keys are ignored", file, key)
        state = state[key]
    invalid_names = [name for name in state if not isinstance(name, str)] if isinstance(state, Mapping) else []
    if invalid_names:
        raise CheckpointError(f"the state has the key {label_of(invalid_names[0])}, which is not a parameter's name")
    return state


def _as_float32(tensor: Tensor, name: str) -> Tensor:
    check_dense(tensor, name)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} is a tensor of {tensor.dtype}, not of real numbers")
    result = tensor.detach().to(torch.float32, copy=True)
    if not result.isfinite().all():
        raise CheckpointError(f"{name} contains NaN, infinity or values that float32 cannot represent")
    return result
