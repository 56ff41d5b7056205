"""The training loop: epochs, optimizer steps, validation, and the evaluation at the end.

What a run needs beside the loop is in other modules: `setup` builds its parts, `stopping` decides when it ends,
`checkpoint_saver` saves and restores it, `failures` reports what went wrong, and `reporter` writes metrics and status.
"""

import logging
import math
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pgat_fast.data.windows import Batch, batch_indices
from pgat_fast.errors import ConfigError
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training.checkpoint import load_weights
from pgat_fast.training.checkpoint_saver import CheckpointSaver
from pgat_fast.training.compile_check import CompileChecker
from pgat_fast.training.failures import FailureHandler
from pgat_fast.training.reporter import Reporter
from pgat_fast.training.results import Results
from pgat_fast.training.run_folder import CHECKPOINTS, move_earlier_results
from pgat_fast.training.schedule import learning_rate
from pgat_fast.training.setup import Setup
from pgat_fast.training.signals import Stop
from pgat_fast.training.state import Ending, Epoch, Progress, RunState, end_of_training
from pgat_fast.training.stopping import Control
from pgat_fast.training.validation import validation_loss
from pgat_fast.utils.io import write_atomically

logger = logging.getLogger(__name__)


class Trainer:
    """A training run in its folder. All ranks call the same methods; only the first one writes files."""

    def __init__(self, setup: Setup, folder: Path, monitor: Monitor, stop: Stop, *, show_progress: bool) -> None:
        """Connect the parts of the run.

        Args:
            setup: data, model and settings of the run.
            folder: folder of the run, locked by this process or by that of the first rank.
            monitor: writes metrics and memory.
            stop: checked before every batch.
            show_progress: show a progress bar if standard error is a terminal.
        """
        step, run = setup.step, setup.run
        self.setup, self.folder, self.show_progress = setup, folder, show_progress
        self.settings, self.splits, self.step, self.group = setup.settings, setup.splits, step, step.group
        self.state = RunState(Progress(started=datetime.now(UTC).isoformat(timespec="seconds")))
        self.reporter = Reporter(folder, monitor, self.group, self.state, setup.settings.epochs, setup.batch_shape)
        self.control = Control(stop, self.group, setup.settings, monitor, run.checkpoint_minutes)
        self.saver = CheckpointSaver(folder / CHECKPOINTS, step, setup.about, run.keep_checkpoints, self.reporter)
        self.failures = FailureHandler(step, setup.splits.train, setup.table.dates, self.control, self.saver)
        self.compile_checker = CompileChecker(
            step, self.control, self.reporter, run.compile, setup.cache, setup.program
        )

    def run(self) -> Results:
        """Restore the checkpoint to resume, train, evaluate, and return the results; {} on all ranks but the first."""
        stop, setup = self.control.stop, self.setup
        stop.last_resort = self.saver.save_from_signal_thread
        self.reporter.write_status("running")
        try:
            self.reporter.record("start", memory=True)
            if setup.resume_point is not None:
                self.control.has_checkpoint = True
                self.saver.restore(setup.resume_point)
                setup.resume_point = None  # frees as much memory as weights and optimizer state take
            self.state.begun = True
            self.reporter.write_status("running")
            self.group.run_on_main(lambda: write_atomically(self.folder / "config.yaml", setup.config_yaml))
            reason = self.fit()
            logger.info("training ends: %s", reason)
            results = self.finish(reason)
        except BaseException as error:
            self.failures.end_run(error)
        finally:
            stop.last_resort, stop.patience = None, 0.0
        self.reporter.record("end")
        self.reporter.write_status("finished", reason=reason, exit_code=0)
        return results

    def fit(self) -> str:
        """Validate and save a new run before its first step, train epoch by epoch, and return why training ended."""
        settings, state = self.settings, self.state
        self.control.poll()
        if state.progress.initial_validation_loss is None:
            state.stage = "validation"
            initial = validation_loss(self.step, self.splits.validation, self.control)
            logger.info("before training: validation loss %.5f", initial)
            state.progress = replace(state.progress, initial_validation_loss=initial)
        self.group.seed_step(settings.seed, state.progress.step)
        self.saver.take_snapshot()
        self.control.allow_saving()
        if not self.group.run_on_main((self.saver.root / state.progress.name).exists):
            self.saver.save(required=True)
        self.control.has_checkpoint = True
        if end_of_training(state.progress, settings) is None:
            self.group.run_on_main(lambda: move_earlier_results(self.folder))
        while (reason := end_of_training(state.progress, settings)) is None:
            if not self.train_epoch():
                reason = end_of_training(state.progress, settings)
                return reason or f"training.max_minutes {settings.max_minutes:g} reached"
            self.end_epoch()
        return reason

    def train_epoch(self) -> bool:
        """Take the remaining optimizer steps of the current epoch; return whether all were taken."""
        settings, state, log_interval = self.settings, self.state, self.setup.run.log_interval
        epoch, first_step = state.progress.epoch, state.progress.epoch_steps
        rate = learning_rate(settings, epoch, [past.validation_loss for past in state.progress.epochs])
        for group in self.step.optimizer.param_groups:
            group["lr"] = rate
        state.stage = "train"
        self.step.model.train()
        order = batch_indices(
            len(self.splits.train),
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            drop_last=True,
            device=self.step.device,
        )
        batches, size = list(order), settings.gradient_accumulation_steps
        steps = [batches[start : start + size] for start in range(0, len(batches), size)]
        with tqdm(
            total=len(steps),
            initial=first_step,
            desc=f"epoch {epoch + 1}/{settings.epochs}",
            unit="step",
            disable=None if self.show_progress else True,
        ) as bar:
            self.reporter.resume_clock()
            for number, accumulation_group in enumerate(steps[first_step:], first_step + 1):
                due = self.control.before_step(state.progress, self.saver.last_save)
                if due == "end":
                    return False
                if due == "save":
                    self.failures.check_gradients(wait=True)
                    self.saver.save()
                self.train_step(accumulation_group)
                bar.update()
                if number % log_interval == 0:
                    mean = self.step.totals.mean_loss()
                    bar.set_postfix(loss=f"{mean:.4f}")
                    if bar.disable:
                        logger.info(
                            "epoch %d, step %d of %d: mean train loss %.5f", epoch + 1, number, len(steps), mean
                        )
        return True

    def train_step(self, accumulation_group: list[Tensor]) -> None:
        """Take one optimizer step over batches of window indices, each int64 [B], and a snapshot after it."""
        step, state, snapshot = self.step, self.state, self.saver.snapshot

        def load(indices: Tensor) -> Batch:
            self.control.poll()
            return self.splits.train.batch(indices)

        shards = [self.group.shard(indices) for indices in accumulation_group]
        weight = self.group.loss_weight(self.settings.batch_size)
        losses = self.compile_checker.accumulate([partial(load, indices) for indices in shards], weight)
        self.group.synchronize(losses)  # before taking the lock that the signal thread needs
        with self.saver.lock:
            step.apply(losses, len(shards), (snapshot, accumulation_group))
            self.failures.check_gradients(wait=self.group.lockstep)
            state.count_seconds()
            state.progress = state.progress.after_step()
            self.group.seed_step(self.settings.seed, state.progress.step)
            self.saver.take_snapshot()
        limits = self.reporter.count_step(
            sum(map(len, accumulation_group)),
            sum(map(len, shards)),
            lambda: {
                "loss": step.totals.mean_loss(),
                "learning_rate": step.optimizer.param_groups[0]["lr"],
                "gradient_norm": step.norm.item(),
            },
        )
        self.control.observe_memory(limits)

    def end_epoch(self) -> None:
        """Validate, record the epoch, and save a checkpoint if one is due."""
        epoch = self.validate(complete=True)
        previous = self.state.progress
        progress = previous.after_epoch(epoch)
        improved = progress.best == progress.name
        with self.saver.lock:
            self.state.progress = progress
            self.step.totals.reset()
            self.saver.take_snapshot()
        interval = self.setup.run.checkpoint_epochs
        due = interval is not None and progress.epoch % interval == 0
        due = due or improved or end_of_training(progress, self.settings) is not None
        if due and not self.saver.save() and improved:
            logger.error(
                "the best weights, of epoch %d, could not be saved: keeping the previous best checkpoint", epoch.epoch
            )
            with self.saver.lock:
                self.state.progress = replace(
                    progress, best=previous.best, best_epoch=previous.best_epoch, best_loss=previous.best_loss
                )
                self.saver.take_snapshot()

    def validate(self, *, complete: bool) -> Epoch:
        """Validate the current weights, and record and return the current epoch, which may end before its last step."""
        self.failures.check_gradients(wait=True)
        self.state.stage = "validation"
        loss = validation_loss(self.step, self.splits.validation, self.control)
        self.state.count_seconds()
        progress, mean = self.state.progress, self.step.totals.mean_loss()
        epoch = Epoch(
            epoch=progress.epoch + 1,
            learning_rate=self.step.optimizer.param_groups[0]["lr"],
            optimizer_steps=progress.epoch_steps,
            skipped_steps=self.step.totals.skipped_steps(),
            train_loss=mean if math.isfinite(mean) else None,
            validation_loss=loss,
            seconds=progress.epoch_seconds,
            complete=complete,
        )
        logger.info(
            "epoch %d of %d: learning rate %.2e, train loss %.5f, validation loss %.5f, %.1f s",
            epoch.epoch, self.settings.epochs, epoch.learning_rate, mean, loss, epoch.seconds,
        )  # fmt: skip
        self.reporter.record(
            "validation",
            memory=True,
            train_loss=mean,
            validation_loss=loss,
            learning_rate=epoch.learning_rate,
            improved=progress.best_loss is None or loss < progress.best_loss,
            epoch_seconds=epoch.seconds,
        )
        return epoch

    def finish(self, reason: str) -> Results:
        """Save the final state, evaluate the best weights on the test windows, and write the results.

        A partial epoch, in which a limit ended training, counts as an epoch of the results, but not of the progress:
        with higher limits, the run continues within it.
        """
        progress, is_main = self.state.progress, self.group.is_main
        ending = Ending.of(progress, reason)
        if progress.epoch_steps > 0:
            ending = ending.with_partial_epoch(self.validate(complete=False), progress.name)
        if self.saver.saved != (progress.name, ending.best):
            self.saver.save(best=ending.best, required=True)
        self.control.leave_group()
        # From here on, the model has other weights than the snapshot, and there is nothing left to save.
        self.saver.snapshot, self.control.stop.patience = None, 0.0
        if not is_main:
            return {}
        if ending.best is None:
            raise ConfigError("no step was taken: nothing to evaluate; raise training.max_minutes or max_steps")
        self.state.stage = "evaluation"
        self.control.poll()
        load_weights(self.step.model, self.saver.root / ending.best)
        self.reporter.record("evaluation", memory=True)
        return self.setup.write_results(
            self.folder,
            self.step,
            self.state.progress,
            ending,
            compile_check=self.compile_checker.result,
            peaks=self.reporter.peaks,
            on_batch=self.control.before_batch,
            show_progress=self.show_progress,
        )
