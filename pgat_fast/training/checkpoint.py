"""Checkpoints: folders that are written atomically and verified before they are read.

`checkpoints/epoch-0001-step-00000180/` contains `model.safetensors` (weights), `training.safetensors` (all other state
needed to resume) and `manifest.json` (metadata, and the sha256 of all files). Earlier versions wrote `training.pt`
instead of `training.safetensors`; it is still read.

A new checkpoint is written under a temporary name, synced to disk and renamed. Other names in the same folder are
`.NAME.PID.tmp` (being written, or left by a killed process), `NAME.previous` (a good checkpoint while another one
replaces it) and `NAME.damaged-1` (a damaged checkpoint after another one has replaced it).
"""

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pgat_fast.errors import CheckpointError
from pgat_fast.training.checkpoint_files import (
    check_space,
    read_manifest,
    read_training,
    read_weights,
    remove_or_warn,
)
from pgat_fast.training.manifest import (
    FILES,
    MANIFEST,
    NAME,
    PREVIOUS,
    TRAINING,
    WEIGHTS,
    decode_manifest,
    encode_manifest,
    find_checkpoints,
)
from pgat_fast.training.run_folder import CHECKPOINTS
from pgat_fast.training.serialization import dump_state, dump_tensors
from pgat_fast.utils.io import first_unused, is_orphan, sync_directory, temporary_name, write_synced

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        weights: parameter name in the layout of this package -> tensor, on the CPU.
        training: nested dicts, lists and tuples of tensors and plain Python values; empty if training starts from these
            weights (an imported checkpoint) or if it was not read.
        about: plain JSON: config, epoch, step, best, validation_loss, input_scaler, target_scaler, data, versions,
            backend. `best` is the name of the checkpoint with the best validation loss so far, or None.
    """

    weights: dict[str, Tensor]
    training: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


# --- writing ----------------------------------------------------------------------------------------------------------


def save_checkpoint(root: Path, name: str, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` to `root / name`, where it appears complete and synced to disk; return that path.

    An existing good checkpoint is replaced, or kept if it is identical; it stays readable until the new one is in
    place. An existing damaged one is set aside as `NAME.damaged-N`.

    Raises CheckpointError, which names the file or the key, if something cannot be stored or written. Then no part of
    the new checkpoint remains, and all others are unchanged.
    """
    target = root / name
    if not NAME.fullmatch(name):
        raise CheckpointError(f"{target}: not a valid name of a checkpoint: it must end with step-NUMBER")
    try:
        contents = {WEIGHTS: dump_tensors(checkpoint.weights), TRAINING: dump_state(checkpoint.training)}
        contents[MANIFEST] = encode_manifest(checkpoint.about, contents)
    except MemoryError:
        raise
    except Exception as error:  # also errors of torch and safetensors for tensors that they cannot write
        raise CheckpointError(f"{target}: cannot be stored: {error}") from error
    temporary = temporary_name(target)
    try:
        if not root.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            sync_directory(root.parent)
        good = not _faults(target)
        if not good or read_manifest(target) != decode_manifest(contents[MANIFEST]):
            check_space(root, sum(map(len, contents.values())))
            remove_or_warn(temporary)
            os.mkdir(temporary)
            for file, content in contents.items():
                write_synced(temporary / file, content)
            sync_directory(temporary)
            _put_in_place(temporary, target, good)
    except OSError as error:
        failed_path = error.filename or target
        raise CheckpointError(
            f"{failed_path}: cannot be written: {error.strerror or error}; {target} was not saved, other checkpoints "
            "are unchanged: free disk space, correct the permissions of the folder, or choose another run.output"
        ) from error
    finally:
        remove_or_warn(temporary)
    remove_or_warn(target.with_name(name + PREVIOUS))
    return target


def _put_in_place(temporary: Path, target: Path, good: bool) -> None:
    """Rename `temporary` to `target`. With `good`, `target` is intact, and stays readable until then."""
    previous = target.with_name(target.name + PREVIOUS)
    if good:
        remove_or_warn(previous)
    else:
        _set_aside(target)
    with ExitStack() as undo:
        if good:
            os.rename(target, previous)
            undo.callback(os.rename, previous, target)
        os.rename(temporary, target)
        undo.callback(os.rename, target, temporary)
        sync_directory(target.parent)
        undo.pop_all()


def _set_aside(damaged: Path) -> None:
    """Rename the checkpoint `damaged`, if it exists."""
    aside = first_unused(damaged.with_name(f"{damaged.name}.damaged-{number}") for number in count(1))
    with suppress(FileNotFoundError):
        os.rename(damaged, aside)
        logger.warning("%s: damaged: renamed to %s", damaged, aside.name)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, *, training: bool = True) -> Checkpoint:
    """Read the checkpoint in the folder `path`. Every file is verified before it is parsed.

    Without `training`, the file of the training state is neither read nor verified, and `Checkpoint.training` is empty.

    Raises CheckpointError, which names the file, if a file is missing, damaged, of a newer version or hostile.
    """
    path = _present(path)
    try:
        manifest = read_manifest(path)
        weights = read_weights(path, manifest)
        return Checkpoint(weights, read_training(path, manifest) if training else {}, manifest.about)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Use another checkpoint: `pgat-fast checkpoint verify {path.parent}` checks them all"
        ) from error


def verify_checkpoint(path: Path) -> list[str]:
    """Return the faults of the checkpoint in the folder `path`, each with its file; an empty list if it is good."""
    return _faults(_present(path))


def _faults(path: Path) -> list[str]:
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    faults = []
    for check in (read_weights, read_training):
        try:
            check(path, manifest)
        except CheckpointError as error:
            faults.append(str(error))
    return faults


def load_weights(model: nn.Module, path: Path) -> Checkpoint:
    """Load the weights of the checkpoint in the folder `path` into `model`; return it without its training state.

    Raises CheckpointError if it cannot be read or does not fit the model.
    """
    checkpoint = read_checkpoint(path, training=False)
    fit_weights(model, path, checkpoint)
    return checkpoint


def fit_weights(model: nn.Module, path: Path, checkpoint: Checkpoint) -> None:
    """Load the weights of `checkpoint`, read from `path`, into `model`. Raise CheckpointError if they do not fit."""
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path / WEIGHTS}: does not fit the configured model; use the configuration of its run: "
            f"{_shortened(error)}"
        ) from error


def _shortened(error: RuntimeError) -> str:
    """Return the message of torch, which lists all names, with some of them."""
    lines = str(error).splitlines()
    more = [f"and {len(lines) - 10} more lines"] if len(lines) > 10 else []
    return "\n".join([*(line if len(line) <= 600 else f"{line[:600]} ..." for line in lines[:10]), *more])


def _present(path: Path) -> Path:
    """Return `path`, or its predecessor if a process was killed while it replaced the checkpoint."""
    previous = path.with_name(path.name + PREVIOUS)
    return previous if not os.path.lexists(path) and os.path.lexists(previous) else path


# --- the checkpoints of a run -----------------------------------------------------------------------------------------


def list_checkpoints(root: Path) -> list[Path]:
    """Return the folders in `root` that have all files of a checkpoint, oldest first. Does not read the files."""
    return [
        path
        for path in find_checkpoints(root)
        if any(all((path / name).is_file() for name in (MANIFEST, *names)) for names in FILES.values())
    ]


def newest_good(root: Path, *, training: bool = True) -> tuple[Path, Checkpoint] | None:
    """Return the path and content of the newest readable checkpoint in `root`; None if there is none.

    Logs a warning for each newer one that is damaged. `training` is as for `read_checkpoint`.
    """
    for path in reversed(find_checkpoints(root)):
        try:
            return path, read_checkpoint(path, training=training)
        except CheckpointError as error:
            logger.warning("%s; trying the previous checkpoint", error)
    return None


def choose_checkpoint(root: Path, which: str) -> tuple[Path, Checkpoint] | None:
    """Return the path and content, without its training state, of the checkpoint `which` in `root`.

    `latest` is the newest readable checkpoint. `best` is the one that it names as the best; if no epoch has been
    validated yet, the newest itself, with a warning. Both are None if none is readable. Any other value is a name.

    Raises CheckpointError if the chosen checkpoint cannot be read.
    """
    if which not in ("best", "latest"):
        return root / which, read_checkpoint(root / which, training=False)
    newest = newest_good(root, training=False)
    if newest is None or which == "latest":
        return newest
    best = newest[1].about.get("best")
    if best is None:
        logger.warning("%s: no epoch has been validated yet: using the newest checkpoint as the best", root)
    if best in (None, newest[0].name):
        return newest
    return root / best, read_checkpoint(root / best, training=False)


def prune(root: Path, keep: int, also: Iterable[str | None] = ()) -> list[Path]:
    """Remove all checkpoints but the newest `keep` (at least 1), the best ones according to these, and those in `also`.

    Checkpoints with an unreadable manifest or files of wrong size are kept and not counted. A warning names
    checkpoints that cannot be removed. Returns the removed paths.
    """
    abouts = {path: about for path in list_checkpoints(root) if (about := _metadata(path)) is not None}
    newest = list(abouts)[-keep:]
    best = {abouts[path].get("best") for path in newest} | set(also)
    removed = []
    for path in abouts:
        if path in newest or path.name.removesuffix(PREVIOUS) in best:
            continue
        # Rename first: a kill during the removal must not leave a partial checkpoint under this name.
        temporary = temporary_name(path)
        try:
            os.rename(path, temporary)
        except OSError as error:
            logger.warning("%s: cannot be removed: %s", path, error.strerror or error)
            continue
        remove_or_warn(temporary)
        removed.append(path)
    return removed


def _metadata(path: Path) -> dict[str, Any] | None:
    """Return the metadata of the checkpoint; None if its manifest or the size of a file is wrong."""
    try:
        manifest = read_manifest(path)
        sizes_fit = all((path / name).lstat().st_size == file.bytes for name, file in manifest.files.items())
    except (CheckpointError, OSError):
        return None
    return manifest.about if sizes_fit else None


def remove_orphans(root: Path) -> list[Path]:
    """Remove leftovers of killed processes of this machine from `root` and, if it is `checkpoints`, its run folder.

    These are files and folders `.NAME.PID.tmp` whose process PID has ended or began after they were written. A good
    checkpoint that was being replaced gets its name back. Returns the removed paths; a warning names those that cannot
    be removed.
    """
    removed = []
    for folder in (root, root.parent) if root.name == CHECKPOINTS else (root,):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_orphan(path) and remove_or_warn(path):
                removed.append(path)
    for path in sorted(root.glob(f"*{PREVIOUS}")):
        target = path.with_name(path.name.removesuffix(PREVIOUS))
        if not NAME.fullmatch(target.name):
            continue
        if not _faults(target):
            removed += [path] if remove_or_warn(path) else []
            continue
        if _faults(path):
            continue
        try:
            _set_aside(target)
            os.rename(path, target)
        except OSError as error:
            logger.warning("%s: cannot be renamed to %s: %s", path, target.name, error.strerror or error)
        else:
            logger.warning("%s: restored: a process was killed while it was replacing this checkpoint", target)
    return removed
