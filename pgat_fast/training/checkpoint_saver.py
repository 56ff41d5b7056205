"""Checkpoints of a run that is training: snapshots between two steps, saving, restoring and emergency saves."""

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pgat_fast import exit_codes
from pgat_fast.errors import CheckpointError
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.training.checkpoint import Checkpoint, fit_weights, prune, save_checkpoint, verify_checkpoint
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.reporter import Reporter
from pgat_fast.training.resume import ResumePoint, move_superseded, unfit_training_state
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_fast.training.state import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State between two optimizer steps, from which the run can resume with the current weights and optimizer state.

    Both change only while a step is applied, so the snapshot remains valid during the computation of the gradients of
    the next step.
    """

    progress: Progress
    totals: Tensor
    """Sums of the epoch so far, on the device, see `optimizer_step.Totals`."""
    generators: dict[str, Any]


class CheckpointSaver:
    """Saves and restores the state of a run; the first rank writes.

    Attributes:
        lock: held while the weights or the snapshot change, and while they are saved.
        snapshot: what a checkpoint written now would contain; None if there is nothing to save.
        saved: name of the last checkpoint written, and of the best one at that time.
        last_save: time of the last checkpoint, from `time.monotonic`.
    """

    def __init__(self, root: Path, step: OptimizerStep, about: dict[str, Any], keep: int, reporter: Reporter) -> None:
        """Store where checkpoints go, what they contain, and how many to keep.

        Args:
            root: folder of the checkpoints.
            step: model, optimizer, scaler and totals.
            about: metadata that all checkpoints of this process share; see `run_metadata.describe_run`.
            keep: number of the newest checkpoints that are kept, beside the best one.
            reporter: records what was saved; its state is the progress.
        """
        self.root, self.step, self.about, self.keep, self.reporter = root, step, about, keep, reporter
        self.group, self.state = reporter.group, reporter.state
        self.lock = threading.Lock()
        self.snapshot: Snapshot | None = None
        self.saved: tuple[str, str | None] | None = None
        self.last_save = time.monotonic()

    def take_snapshot(self) -> None:
        """Set the snapshot to the current state. Call it with the lock held, or before training."""
        self.snapshot = Snapshot(self.state.progress, self.step.totals.values, generator_states())

    def save(self, *, best: str | None = None, required: bool = False) -> bool:
        """Write a checkpoint of the snapshot and remove old ones; return whether it was written.

        A checkpoint that cannot be written (e.g. full disk) ends the run only if `required`: the next may succeed.
        """
        with self.lock:
            assert self.snapshot is not None
            snapshot = self.snapshot
            written = self.group.run_on_main(lambda: self._write(snapshot, best, required))
            if written:
                self.saved = snapshot.progress.name, best or snapshot.progress.best
        self.last_save = time.monotonic()
        self.reporter.resume_clock()
        return written

    def _write(self, snapshot: Snapshot, best: str | None, required: bool) -> bool:
        """Write the checkpoint on the first rank, see `save`."""
        started, name = time.monotonic(), snapshot.progress.name
        try:
            save_checkpoint(self.root, name, self._checkpoint(snapshot, best))
            prune(self.root, self.keep, [snapshot.progress.best, name])
        except CheckpointError as error:
            self.reporter.record("checkpoint", level="error", name=name, error=str(error))
            if required:
                raise
            logger.error("%s; training continues, and earlier checkpoints are intact", error)
            return False
        self.reporter.record("checkpoint", name=name, ok=True, seconds=time.monotonic() - started)
        self.reporter.write_status("running")
        return True

    def _checkpoint(self, snapshot: Snapshot, best: str | None = None) -> Checkpoint:
        """Return a checkpoint, on the CPU, with everything needed to resume from `snapshot`."""
        progress = snapshot.progress
        return Checkpoint(
            weights=_to_cpu(self.step.model.state_dict()),
            training={
                "progress": replace(progress, peaks=self.reporter.peaks()).to_dict(),
                "totals": snapshot.totals.tolist(),
                "generators": snapshot.generators,
                "optimizer": _to_cpu(self.step.optimizer.state_dict()),
                "scaler": self.step.scaler.state_dict(),
            },
            about=self.about
            | {
                "compiled": self.step.regions != "none",
                "compiled_regions": self.step.regions,
                "epoch": progress.epoch,
                "step": progress.step,
                "best": best or progress.best,
                "validation_loss": progress.epochs[-1].validation_loss if progress.epochs else None,
            },
        )

    def restore(self, point: ResumePoint) -> None:
        """Restore the run from a checkpoint. An imported one holds weights only: training begins with them."""
        path, checkpoint, progress, step = point.path, point.checkpoint, point.progress, self.step
        fit_weights(step.model, path, checkpoint)
        if progress is None:
            logger.info("%s contains weights only: training starts from them with a new optimizer state", path)
        else:
            training = checkpoint.training
            try:
                step.optimizer.load_state_dict(training["optimizer"])
                if training["scaler"] and step.scaler.is_enabled():
                    step.scaler.load_state_dict(training["scaler"])
                step.totals.reset(training["totals"])
                restore_generators(training["generators"])
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise unfit_training_state(path, error) from error
            for group in step.optimizer.param_groups:
                group["weight_decay"] = step.settings.weight_decay
            self.state.progress = self._with_good_best(replace(progress, resumes=progress.resumes + 1))
            logger.info(
                "resumed from %s: epoch %d, %d steps of it done, %d in all",
                path, progress.epoch + 1, progress.epoch_steps, progress.step,
            )  # fmt: skip
            if checkpoint.about.get("versions") != self.about["versions"]:
                logger.warning(
                    "%s was written with other software versions: results may differ in the last digits", path
                )
            # Not `reporter.epoch`: readers drop the earlier record of this epoch, which must not be a complete one.
            self.reporter.monitor.record("resume", epoch=progress.epoch + 1, step=progress.step, checkpoint=path.name)
        self.group.run_on_main(lambda: move_superseded(path))

    def _with_good_best(self, progress: Progress) -> Progress:
        """Return `progress`, without its best checkpoint if that one is missing or damaged."""
        best = progress.best
        if best is None or not self.group.run_on_main(lambda: bool(verify_checkpoint(self.root / best))):
            return progress
        logger.warning("%s: the best checkpoint so far is missing or damaged: best-checkpoint tracking is reset", best)
        return replace(progress, best=None, best_epoch=progress.epoch, best_loss=None)

    def emergency_save(self) -> None:
        """Write a checkpoint of a run that ends with an error, if possible."""
        if self.snapshot is None or not self.group.is_main:
            return
        name = self.snapshot.progress.name
        try:
            self.step.optimizer.zero_grad()
            release_caches()
            with self.lock:
                save_checkpoint(self.root, name, self._checkpoint(self.snapshot))
            logger.info("saved %s: continue with --resume %s", name, self.reporter.folder)
        except Exception as failure:
            logger.error("no checkpoint could be written: %s; earlier ones are intact", failure)

    def save_from_signal_thread(self, reason: str) -> None:
        """Save when a long computation keeps the main thread from stopping in time; the process ends afterwards."""
        note = "nothing to save"
        if not self.group.is_main:
            return
        if not self.lock.acquire(timeout=8.0):
            note = "no checkpoint was written: the one being written may not end; earlier ones are intact"
        elif self.snapshot is not None:
            # The lock is never released: this process is about to end.
            name = self.snapshot.progress.name
            if not (self.root / name).exists():
                save_checkpoint(self.root, name, self._checkpoint(self.snapshot))
            note = f"saved {name}"
        self.reporter.write_status("stopped", reason=f"{reason} ({note})", exit_code=exit_codes.of_signal(reason))


def _to_cpu(tree: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor on the CPU. Tensors already there are not copied."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {key: _to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_to_cpu, tree))
    return tree
