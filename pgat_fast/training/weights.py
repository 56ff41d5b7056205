"""The weights of a run in one file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from pgat_fast import __version__
from pgat_fast.config import Config, dump_config
from pgat_fast.errors import CheckpointError
from pgat_fast.files import write_atomically


def save_weights(path: Path, model: nn.Module, config: Config, **notes: object) -> None:
    """Write the parameters of `model` as safetensors, atomically, with the configuration and `notes` beside them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"pgat_fast": __version__, "config": dump_config(config)}
    write_atomically(path, save(state, metadata | {key: str(value) for key, value in notes.items()}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load what `save_weights` wrote. Raises CheckpointError where the file is missing, damaged or does not fit."""
    try:
        state = load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the configured model: {error}") from error
