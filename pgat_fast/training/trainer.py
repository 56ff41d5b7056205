"""One training run, from the configuration to the results."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor
from tqdm import tqdm

from pgat_fast import exit_codes
from pgat_fast.config import Config, dump_config
from pgat_fast.data.load import load_splits
from pgat_fast.data.windows import Batch, batch_indices, example
from pgat_fast.distributed import environment
from pgat_fast.distributed.process_group import SingleProcess, device_of_rank, process_group
from pgat_fast.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    MemoryLimitError,
    OutOfMemoryError,
    PgatError,
    RankError,
    StopRequested,
    TrainingError,
    first_line,
)
from pgat_fast.evaluation.evaluate import mean_loss_of_split
from pgat_fast.model import build_model, kernel_summary, recompute_summary, resolve_backend
from pgat_fast.model.compilation import Regions, compile_in_place, decide_compile, expected_batch_seconds
from pgat_fast.model.compile_cache import CompileCache, compile_cache
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision, resolve_precision
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.monitoring.tensorboard import writer_class
from pgat_fast.training.checkpoint import (
    Checkpoint,
    fit_weights,
    load_weights,
    prune,
    read_checkpoint,
    remove_orphans,
    save_checkpoint,
    verify_checkpoint,
)
from pgat_fast.training.compile_check import check_compiled_step
from pgat_fast.training.estimate import MANY, expected_compile_seconds, measure_batch_seconds, program_key
from pgat_fast.training.failures import find_nonfinite, is_out_of_memory, memory_report, write_report
from pgat_fast.training.optimizer_step import SMALLEST_SCALE, OptimizerStep, make_optimizer
from pgat_fast.training.results import Results, finish_run
from pgat_fast.training.resume import (
    check_same_data,
    check_same_run,
    open_checkpoint,
    set_newer_aside,
    stored_progress,
    unfit_training_state,
)
from pgat_fast.training.rng import generator_states, restore_generators, seed_everything
from pgat_fast.training.run_folder import (
    CHECKPOINTS,
    checkpoint_of,
    locked,
    log_file,
    new_folder,
    read_status,
    run_of_job,
    set_results_aside,
    write_status,
)
from pgat_fast.training.run_metadata import compiled_regions, describe_run
from pgat_fast.training.schedule import learning_rate
from pgat_fast.training.state import Ending, Epoch, Progress, end_of_training, most_steps
from pgat_fast.training.stop import PATIENCE, PATIENCE_OF_OTHERS, Stop
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.io import write_atomically

logger = logging.getLogger(__name__)


def train(
    config: Config, *, resume: Path | None = None, stop: Stop | None = None, progress: bool = True
) -> tuple[Path, Results]:
    """Train a model as configured and return the folder of the run and the results.

    A new run gets a new folder in `run.output`. From the start, the folder contains `config.yaml` (resolved),
    `status.json`, `train.log`, `metrics.jsonl`, `memory.jsonl` and `checkpoints/`; at the end also `results.json`,
    `forecasts.csv`, `adjacency.csv`, `intervals.json` and `plots/`. The test metrics are those of the weights with the
    best validation loss. However the run ends, it can be resumed from the newest checkpoint.

    With several ranks (`pgat_fast.distributed`), the first rank writes all files; the others return no results.

    Args:
        config: the whole configuration.
        resume: folder of a run, or one of its checkpoints, to resume exactly as if the run had never stopped; its
            configuration must equal `config` except for the limits of training.
        stop: checked before every batch; `StopSignals` turns signals into stop requests.
        progress: show a progress bar if standard error is a terminal.

    Raises:
        DataError, ConfigError, BackendError, CheckpointError: the data, settings, machine or checkpoint do not allow
            this run; nothing was written.
        TrainingError: a loss or gradient became NaN or infinite; the weights are those before that step.
        OutOfMemoryError: the machine ran out of memory; a checkpoint has been written.
        MemoryLimitError: the run reached its memory limit; a checkpoint has been written.
        StopRequested: the run was asked to stop; a checkpoint has been written.
        RankError: another rank has ended or does not answer; the first rank has written a checkpoint.
    """
    stop = stop or Stop()
    device = device_of_rank(resolve_device(config.run.device))
    with ExitStack() as held:
        cache = held.enter_context(compile_cache()) if config.run.compile != "off" else None
        group = held.enter_context(process_group(device, config.run.rank_timeout_seconds))
        restarted = any(group.all_gather(environment.restart_count()))  # counted by each machine
        found: tuple[Path, Checkpoint] | None = None

        def open_on_main() -> Path | None:
            nonlocal found
            found = _checkpoint_to_resume(config, resume, restarted, held)
            return None if found is None else found[0]

        path = group.run_on_main(open_on_main)  # other machines may not have the same files
        if path is not None and found is None:
            found = path, read_checkpoint(path)
        trainer = Trainer(config, found, stop, progress and group.is_main, group, cache)
        folder = group.run_on_main(lambda: _open_folder(config, path, held))
        if group.run_on_main(lambda: trainer.is_finished(folder)):
            logger.info("%s is finished: nothing to do (more epochs or steps would be)", folder)
            results: Results = json.loads((folder / "results.json").read_bytes())
            return folder, results
        return folder, trainer.run(folder)


def _checkpoint_to_resume(
    config: Config, resume: Path | None, restarted: bool, held: ExitStack
) -> tuple[Path, Checkpoint] | None:
    """Return the path and content of the checkpoint to resume, and lock its run folder; None for a new run.

    After a restart by torchrun, it is the newest checkpoint of the run that an earlier start of this job began.
    """
    job = environment.job_id()
    if restarted and job is not None:
        resume = run_of_job(job, config, resume) or resume
    if resume is None:
        return None
    folder, name = checkpoint_of(resume)
    held.enter_context(locked(folder))
    for orphan in remove_orphans(folder / CHECKPOINTS):
        logger.warning("%s: left by a process that was killed: removed", orphan)
    return open_checkpoint(folder, name)


def _open_folder(config: Config, checkpoint: Path | None, held: ExitStack) -> Path:
    """Return the folder of the run of `checkpoint`, or a new, locked folder, and open its log."""
    if checkpoint is not None:
        folder = checkpoint.parent.parent
    else:
        folder = new_folder(Path(config.run.output), config.run.name)
        held.enter_context(locked(folder))
    held.enter_context(log_file(folder))
    return folder


Due = Literal["end", "save"] | None
"""Action due before a step: end training because of a limit, save a checkpoint, or none."""


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


class Trainer:
    """A training run. The constructor makes all checks that are possible and writes nothing; `run` does the rest."""

    def __init__(
        self,
        config: Config,
        found: tuple[Path, Checkpoint] | None,
        stop: Stop,
        progress: bool,
        group: SingleProcess | None = None,
        cache: CompileCache | None = None,
    ) -> None:
        self.cache = cache
        self.device = device_of_rank(resolve_device(config.run.device))
        self.group = group = group or SingleProcess()
        self.config, self.settings, self.stop, self.show_progress = config, config.training, stop, progress
        self.found, self.resumed = found, found is not None
        """Checkpoint to resume, None after it has been restored; whether the run was resumed."""
        self.place = None if found is None else stored_progress(*found)
        """Progress stored in that checkpoint; None for a new run, or if the checkpoint holds weights only."""
        if found is not None:
            mid_epoch = self.place is not None and self.place.cycle > 0
            check_same_run(found[0], found[1].about.get("config", {}), config, mid_epoch)
        if self.settings.batch_size < group.size:
            raise ConfigError(
                f"training.batch_size {self.settings.batch_size} is the batch of all {group.size} ranks together: "
                "raise it, so that each has a window, or start fewer ranks"
            )
        seed_everything(self.settings.seed, deterministic=config.run.deterministic)
        self.table, self.splits = load_splits(config.data, config.model, self.device)
        if found is not None:
            check_same_data(found[0], found[1].about.get("data", {}), self.table.sha256, self.table.source)
        # Before a model is built: rejects a split that does not fill one batch.
        batch_indices(len(self.splits.train), self.settings.batch_size, drop_last=True)
        if config.run.tensorboard:
            writer_class()
        precision = resolve_precision(config.run.precision, self.device)
        self.model = build_model(config)
        self.model.to(self.device)
        self.program = program_key(config, self.device)
        regions = self.decide_compile(precision)
        if isinstance(self.model, FastPGAT):
            logger.info("recompute %s: %s", config.run.recompute, recompute_summary(self.model.execution, regions))
        if regions != "none":
            # CUDA graphs would overwrite gradients that are summed over several batches or ranks.
            compile_in_place(self.model, self.device, regions=regions, graphs=group.size == 1)
        self.check_compilation = regions != "none"
        """Whether to compare the next step with an eager one: the first compiled step of this process, and those after
        it until the eager gradients are finite."""
        self.compile_seconds = 0.0
        """Seconds of the longest compared compiled step, the one that compiled. They count as the cost of compilation,
        since the step was taken in addition to the eager one."""
        if self.settings.lr_schedule == "warmup_cosine" and self.settings.warmup_epochs >= self.settings.epochs:
            logger.warning("training.warmup_epochs %d: the run ends before warm-up does", self.settings.warmup_epochs)
        trained = group.wrap(self.model)
        self.step = OptimizerStep(
            self.model, make_optimizer(self.model, self.settings), config.model, self.settings, precision, self.device,
            graphs=regions == "whole" and self.device.type == "cuda" and group.size == 1, group=group, trained=trained,
        )  # fmt: skip
        kernels = kernel_summary(self.model)
        self.about = describe_run(config, self.table, self.splits) | {
            "compiled": regions != "none",
            "compiled_regions": regions,
            "kernels": kernels,
        }
        previous_kernels = kernels if self.found is None else self.found[1].about.get("kernels", kernels)
        if previous_kernels != kernels:
            logger.warning(
                "kernels: the run began with %s and goes on with %s: its losses will differ by rounding",
                previous_kernels,
                kernels,
            )
        self.compile_check: dict[str, Any] | None = None
        """Result of comparing the first compiled step of this process with an eager one."""
        self.progress = Progress(started=datetime.now(UTC).isoformat(timespec="seconds"))
        self.applying = threading.Lock()
        """Held while the weights or the snapshot change, and while they are saved."""
        self.snapshot: Snapshot | None = None
        self.saved: tuple[str, str | None] | None = None
        """Name of the last checkpoint written, and of the best one at that time."""
        self.stage = "start"
        self.over: str | None = None
        """Message of the memory limit that this process has exceeded."""
        self.counted_since, self.windows_counted = time.monotonic(), 0
        """Start time and result of counting this rank's training windows; validation windows are not counted."""
        self.begun = False
        """Whether the checkpoint to resume, if any, has been restored."""
        self.all_fail = False
        """Whether all ranks raise the error that ends the run, at the same point."""

    def decide_compile(self, precision: Precision) -> Regions:
        """Return the regions to compile: those of the resumed run, or what suits the length of the whole run."""
        settings, requested, backend = self.settings, self.config.run.compile, resolve_backend(self.config.run.backend)
        resumed_regions = None if self.found is None else compiled_regions(self.found[1].about)
        accumulated, windows = settings.gradient_accumulation_steps, len(self.splits.train)
        seconds = accumulated * expected_batch_seconds(self.config, self.device) / self.group.size
        alone_on_cpu = self.device.type == "cpu" and self.group.size == 1  # ranks must decide alike: by the settings
        undecided = requested == "auto" and resumed_regions is None
        long_run = most_steps(settings, windows, seconds) >= MANY
        if undecided and long_run and alone_on_cpu and isinstance(self.model, FastPGAT):
            with torch.random.fork_rng(devices=[]):
                inputs = example(self.config.model, settings.batch_size)[:4]
            batch_seconds = measure_batch_seconds(self.model, inputs, precision, self.device, self.stop.check)
            seconds = accumulated * batch_seconds
        return decide_compile(
            requested,
            backend,
            self.device,
            expected_steps=most_steps(settings, windows, seconds),
            seconds_per_step=seconds,
            compile_seconds=expected_compile_seconds(
                self.cache if self.group.size == 1 else None, self.program, self.device
            ),
            previous=resumed_regions,
        )

    # --- the whole run --------------------------------------------------------------------------------------------

    def run(self, folder: Path) -> Results:
        """Train in `folder`, which this process has locked, evaluate, and return the results."""
        run = self.config.run
        self.folder, self.checkpoints = folder, folder / CHECKPOINTS
        self.process_started = self.clock = self.last_save = time.monotonic()
        self.stop.last_resort = self.last_resort
        self.write_status("running")
        with Monitor(
            folder,
            self.device,
            seq_len=self.config.model.seq_len,
            interval=run.monitor_interval,
            metrics_level=run.metrics_level if self.group.is_main else "off",
            memory_level=run.memory_level if self.group.is_main else "off",
            tensorboard=run.tensorboard and self.group.is_main,
            memory_limit_gb=run.memory_limit_gb,
            device_memory_limit_gb=run.device_memory_limit_gb,
        ) as self.monitor:
            try:
                self.begin()
                why = self.fit()
                results = self.finish(why)
            except BaseException as error:
                self.fail(error)
            finally:
                self.stop.last_resort, self.stop.patience = None, 0.0
            self.record("end")
        self.write_status("finished", reason=why, exit_code=0)
        return results

    def is_finished(self, folder: Path) -> bool:
        """Return whether the run in `folder` has reached the end that these settings ask for and has results."""
        return (
            self.place is not None
            and read_status(folder).get("state") == "finished"
            and (folder / "results.json").is_file()
            and end_of_training(self.place, self.settings) is not None
        )

    def begin(self) -> None:
        """Restore the checkpoint to resume; otherwise validate the new run once and save it before its first step."""
        self.record("start", memory=True)
        if self.found is not None:
            path, checkpoint = self.found
            self.restore(path, checkpoint)
            self.group.run_on_main(lambda: set_newer_aside(path))
            self.found = None  # frees as much memory as weights and optimizer state take
        self.begun = True
        self.write_status("running")
        content = dump_config(self.config).encode()
        self.group.run_on_main(lambda: write_atomically(self.folder / "config.yaml", content))
        self.group.poll(self.stop.check)
        if self.progress.initial_validation_loss is None:
            self.stage = "validation"
            initial = self.validate()
            logger.info("before training: validation loss %.5f", initial)
            self.progress = replace(self.progress, initial_validation_loss=initial)
        self.group.seed_step(self.settings.seed, self.progress.step)
        self.take_snapshot()
        self.stop.patience = PATIENCE if self.group.is_main else PATIENCE_OF_OTHERS
        if not self.group.run_on_main((self.checkpoints / self.progress.name).exists):
            self.save(required=True)

    def fit(self) -> str:
        """Train epoch by epoch and return why training ended."""
        goes_on = end_of_training(self.progress, self.settings) is None and self.group.is_main
        if goes_on and (aside := set_results_aside(self.folder)):
            logger.info("the run goes on: the results of its earlier end are in %s", aside)
        while True:
            why = end_of_training(self.progress, self.settings)
            if why is None and not self.train_epoch():
                why = end_of_training(self.progress, self.settings) or (
                    f"training.max_minutes {self.settings.max_minutes:g} are over"
                )
            if why is not None:
                logger.info("training ends: %s", why)
                return why
            self.end_epoch()

    def train_epoch(self) -> bool:
        """Take the remaining optimizer steps of the current epoch; return whether all were taken."""
        settings, number = self.settings, self.progress.epoch
        rate = self.learning_rate()
        for group in self.step.optimizer.param_groups:
            group["lr"] = rate
        self.stage = "train"
        self.model.train()
        order = batch_indices(
            len(self.splits.train),
            settings.batch_size,
            seed=settings.seed,
            epoch=number,
            drop_last=True,
            device=self.device,
        )
        cycles = chunk(list(order), settings.gradient_accumulation_steps)
        with tqdm(
            total=len(cycles),
            initial=self.progress.cycle,
            desc=f"epoch {number + 1}/{settings.epochs}",
            unit="step",
            disable=None if self.show_progress else True,
        ) as bar:
            self.monitor.resume_clock()
            self.counted_since, self.windows_counted = time.monotonic(), 0
            for cycle in cycles[self.progress.cycle :]:
                if self.before_step():
                    return False
                self.train_step(cycle)
                bar.update()
                if self.progress.cycle % self.config.run.log_interval == 0:
                    mean = self.mean_loss()
                    bar.set_postfix(loss=f"{mean:.4f}")
                    if bar.disable:
                        logger.info(
                            "epoch %d, step %d of %d: mean train loss %.5f",
                            number + 1, self.progress.cycle, len(cycles), mean,
                        )  # fmt: skip
        return True

    def train_step(self, cycle: list[Tensor]) -> None:
        """Take one optimizer step over the batches of `cycle`, and a snapshot after it."""
        snapshot, windows = self.snapshot, self.splits.train

        def load(indices: Tensor) -> Batch:
            self.group.poll(self.stop.check)
            return windows.batch(self.group.shard(indices))

        weight = self.group.loss_weight(self.settings.batch_size)
        batches = [partial(load, indices) for indices in cycle]
        if self.check_compilation:
            losses = self.first_compiled_step(batches, weight)
        else:
            losses = self.step.accumulate(batches, weight)
        self.group.synchronize(losses)  # before taking the lock that `last_resort` needs
        with self.applying:
            self.step.apply(losses, len(cycle), (snapshot, cycle))
            self.read_flags(wait=self.group.lockstep)
            self.tick()
            self.progress = replace(self.progress, cycle=self.progress.cycle + 1, step=self.progress.step + 1)
            self.group.seed_step(self.settings.seed, self.progress.step)
            self.take_snapshot()
        state = self.monitor.step(
            self.progress.epoch + 1,
            self.progress.step,
            self.batch_shape,
            sum(len(indices) for indices in cycle),
            lambda: {
                "loss": self.mean_loss(),
                "learning_rate": self.step.optimizer.param_groups[0]["lr"],
                "gradient_norm": self.step.norm.item(),
            },
        )
        self.over = state.message if state.over else None
        self.windows_counted += sum(len(self.group.shard(indices)) for indices in cycle)
        if self.progress.step % self.config.run.monitor_interval == 0:
            self.record_ranks()

    def first_compiled_step(self, batches: Sequence[Callable[[], Batch]], weight: float) -> Tensor:
        """Accumulate as `OptimizerStep` does, and compare the compiled step with an eager one of the same random state.

        If compilation fails or the gradients differ, `run.compile=auto` continues eagerly with the eager gradients;
        `on` and `whole` end the run, whose checkpoint is that from before the step.
        """
        check = check_compiled_step(self.step, batches, weight, self.stop.check)
        self.compile_seconds = max(self.compile_seconds, check.compiled_seconds)
        self.check_compilation = check.undecided
        self.record("compilation", level="info" if check.fault is None else "error", **check.to_dict())
        self.compile_check = check.to_dict()
        if check.fault is None:
            logger.info("%s", check.text())
            if self.cache is not None and not check.undecided:
                self.cache.record()
                self.cache.note_seconds(self.program, self.compile_seconds)
        elif self.config.run.compile == "auto":
            logger.warning("%s; the run goes on without compilation", check.text())
            self.about |= {"compiled": False, "compiled_regions": "none"}
        else:
            self.all_fail = True  # gradients are the same on all ranks
            raise BackendError(
                f"{check.text()}. Set run.compile=off, or auto, which goes on without compilation; another version of "
                "torch may compile it right (`pgat-fast info` shows this one)"
            )
        return check.losses

    def before_step(self) -> bool:
        """Save a checkpoint if one is due by time; return, alike on all ranks, whether a limit ends training now."""
        due = self.agree(self.due())
        if due == "save":
            self.save()
        return due == "end"

    def due(self) -> Due:
        """Return the action that the limits of training and the minutes between checkpoints require now."""
        if self.limit_reached():
            return "end"
        minutes = self.config.run.checkpoint_minutes
        return "save" if minutes is not None and time.monotonic() - self.last_save >= 60 * minutes else None

    def agree(self, due: Due = None) -> Due:
        """Raise on all ranks the reason for which any of them must stop; otherwise return `due` of the first rank."""
        requests: dict[str, str | None] = {"stop": self.stop.requested, "memory": self.over}
        requests["due"] = due if self.group.is_main else None
        request = next(((kind, text) for kind, text in requests.items() if text), None)
        agreed: dict[str, str] = dict(reversed(self.group.all_gather_requests(request)))
        self.all_fail = "stop" in agreed or "memory" in agreed
        if "stop" in agreed:
            self.stop.request(agreed["stop"])
            raise StopRequested(agreed["stop"])
        if "memory" in agreed:
            raise MemoryLimitError(agreed["memory"])
        return cast(Due, agreed.get("due"))

    def record_ranks(self) -> None:
        """Record the memory use and speed of every rank, and their sums."""
        if self.group.size == 1:
            return
        now = time.monotonic()
        rate = self.windows_counted / (now - self.counted_since)
        self.counted_since, self.windows_counted = now, 0
        keys = ("process_gib", "device_allocated_gib", "windows_per_second")
        reading = self.monitor.reading() | {"windows_per_second": rate}
        ranks = self.group.all_gather({key: reading.get(key) for key in keys})
        total = {key: sum(rank[key] or 0.0 for rank in ranks) for key in keys}
        self.record("ranks", ranks=ranks, total=total)

    def end_epoch(self) -> None:
        """Validate, record the epoch, and save a checkpoint if one is due."""
        epoch = self.validated_epoch(complete=True)
        progress = self.progress.after_epoch(epoch)
        improved = progress.best == progress.name
        with self.applying:
            previous, self.progress = self.progress, progress
            self.step.totals.reset()
            self.take_snapshot()
        interval = self.config.run.checkpoint_epochs
        due = interval is not None and progress.epoch % interval == 0
        wanted = improved or due or end_of_training(progress, self.settings) is not None
        if wanted and not self.save() and improved:
            logger.error(
                "the best weights, of epoch %d, could not be saved: keeping the previous best checkpoint", epoch.epoch
            )
            progress_with_previous_best = replace(
                progress, best=previous.best, best_epoch=previous.best_epoch, best_loss=previous.best_loss
            )
            with self.applying:
                self.progress = progress_with_previous_best
                self.take_snapshot()

    def finish(self, why: str) -> Results:
        """Save the final state, evaluate the best weights on the test windows, and write the results."""
        ending = self.ending(why)
        if self.saved != (self.progress.name, ending.best):
            self.save(best=ending.best, required=True)
        ranks, is_main = self.group.size, self.group.is_main
        self.group.close()
        self.group = SingleProcess()  # the first rank evaluates alone; the others are done
        if not is_main:
            self.snapshot = None
            return {}
        if ending.best is None:
            raise ConfigError("no step was taken: nothing to evaluate; raise training.max_minutes or max_steps")
        # From here on, the model holds other weights than the snapshot, and there is nothing left to save.
        self.stage, self.snapshot, self.stop.patience = "evaluation", None, 0.0
        self.stop.check()
        load_weights(self.model, self.checkpoints / ending.best)
        self.record("evaluation", memory=True)
        return finish_run(
            self.config,
            self.folder,
            self.table,
            self.splits,
            self.model,
            self.progress,
            ending,
            precision=self.step.precision,
            compiled=self.about["compiled"],
            compile_check=self.compile_check,
            ranks=ranks,
            peaks=self.peaks,
            on_batch=self.before_batch,
            show_progress=self.show_progress,
        )

    # --- parts of the run -----------------------------------------------------------------------------------------

    def learning_rate(self) -> float:
        """Return the learning rate of the current epoch."""
        return learning_rate(self.settings, self.progress.epoch, [e.validation_loss for e in self.progress.epochs])

    def limit_reached(self) -> bool:
        """Return whether `max_minutes` or another limit ends training now."""
        minutes = self.settings.max_minutes
        out_of_time = minutes is not None and time.monotonic() - self.process_started >= 60 * minutes
        return out_of_time or end_of_training(self.progress, self.settings) is not None

    def before_batch(self) -> None:
        """Raise if the run must stop or exceeds a memory limit. Called before every evaluated window."""
        self.group.poll(self.stop.check)
        if self.saved is not None or self.resumed:  # without a checkpoint, a memory limit does not stop it
            state = self.monitor.limit_state()
            self.over = state.message if state.over else None
        self.agree()

    def validate(self) -> float:
        """Return the validation loss, a mean over windows; raise TrainingError if it is not finite."""
        loss = mean_loss_of_split(
            self.model,
            self.splits.validation,
            self.config.model.mdn_multivariate_mode,
            on_batch=self.before_batch,
            group=self.group,
        )
        if not math.isfinite(loss):
            self.all_fail = True  # the loss is the same on all ranks
            raise TrainingError(f"the validation loss is {loss}: lower training.learning_rate")
        return loss

    def validated_epoch(self, *, complete: bool) -> Epoch:
        """Validate the current weights and return the record of the current epoch."""
        self.read_flags(wait=True)
        self.stage = "validation"
        loss = self.validate()
        self.tick()
        progress, skipped = self.progress, int(self.step.totals.values[2].item())
        mean = self.mean_loss()
        epoch = Epoch(
            epoch=progress.epoch + 1,
            learning_rate=self.step.optimizer.param_groups[0]["lr"],
            optimizer_steps=progress.cycle,
            skipped_steps=skipped,
            train_loss=mean if math.isfinite(mean) else None,
            validation_loss=loss,
            seconds=progress.epoch_seconds,
            complete=complete,
        )
        improved = progress.best_loss is None or loss < progress.best_loss
        logger.info(
            "epoch %d of %d: learning rate %.2e, train loss %.5f, validation loss %.5f, %.1f s",
            epoch.epoch, self.settings.epochs, epoch.learning_rate, mean, loss, epoch.seconds,
        )  # fmt: skip
        self.record(
            "validation", memory=True, train_loss=mean, validation_loss=loss, learning_rate=epoch.learning_rate,
            improved=improved, epoch_seconds=epoch.seconds,
        )  # fmt: skip
        return epoch

    def ending(self, why: str) -> Ending:
        """Return the outcome of training. A partial epoch, in which a limit ended training, counts as an epoch here.

        It does not count as one in the progress of the run: resumed with higher limits, the run continues within it.
        """
        progress = self.progress
        ending = Ending(why, progress.epochs, progress.best, progress.best_epoch, progress.best_loss)
        if progress.cycle == 0:
            return ending
        partial_epoch = self.validated_epoch(complete=False)
        ending = replace(ending, epochs=(*ending.epochs, partial_epoch))
        if ending.best_loss is not None and ending.best_loss <= partial_epoch.validation_loss:
            return ending
        return replace(
            ending, best=progress.name, best_epoch=partial_epoch.epoch, best_loss=partial_epoch.validation_loss
        )

    def mean_loss(self) -> float:
        """Return the mean loss of the batches of this epoch so far; NaN before the first. Waits for the device."""
        total, batches, _ = self.step.totals.values.tolist()
        return total / batches if batches else math.nan

    def read_flags(self, wait: bool = False) -> None:
        """Handle the steps with non-finite gradients whose flags have arrived; with `wait`, wait for all flags."""
        for snapshot, cycle in self.step.flags.raised(wait):
            scaler = self.step.scaler
            if scaler.is_enabled() and (scale := scaler.get_scale()) > SMALLEST_SCALE:
                logger.info("a float16 gradient overflowed: the step is left out, the loss scale is now %g", scale)
                continue
            self.nonfinite(snapshot, cycle)

    def nonfinite(self, before: Snapshot, cycle: list[Tensor]) -> None:
        """Report where a non-finite value came from; raise TrainingError unless the step may be left out."""
        progress = before.progress
        location = f"epoch {progress.epoch + 1}, step {progress.cycle + 1}"
        shards = [self.group.shard(indices) for indices in cycle]
        report = find_nonfinite(self.step, self.splits.train, shards, self.table.dates, before.generators)
        report = {"epoch": progress.epoch + 1, "step": progress.step + 1} | report
        path = write_report(self.folder, self.report_name("nonfinite", progress.step + 1), report)
        left_out = int(before.totals[2].item()) + sum(epoch.skipped_steps for epoch in progress.epochs)
        losses = ", ".join(f"{batch['loss']}" for batch in report["batches"])
        message = f"{location}: the gradient is not finite (losses {losses}); diagnosis in {path}"
        self.record("error", level="error", error=message, report=path.name)
        if left_out < self.settings.nonfinite_steps:
            logger.warning("%s; the step is left out (training.nonfinite_steps)", message)
            return
        if self.step.sticky:  # otherwise a GPU may already have applied later steps
            self.snapshot = before
        self.all_fail = True  # the gradient is the same on all ranks
        raise TrainingError(
            f"{message}; the weights are as before this step. Lower training.learning_rate or "
            "training.clip_grad_norm, or check the data with `pgat-fast data check`"
        )

    # --- saving and restoring -------------------------------------------------------------------------------------

    def take_snapshot(self) -> None:
        self.snapshot = Snapshot(self.progress, self.step.totals.values, generator_states())

    def tick(self) -> None:
        """Add the time since the last call to the durations of the run and the epoch."""
        now = time.monotonic()
        passed, self.clock = now - self.clock, now
        progress = self.progress
        self.progress = replace(
            progress, seconds=progress.seconds + passed, epoch_seconds=progress.epoch_seconds + passed
        )

    def save(self, *, best: str | None = None, required: bool = False) -> bool:
        """Write a checkpoint of the snapshot and remove old ones; return whether it was written.

        A checkpoint that cannot be written (e.g. full disk) ends the run only if `required`: the next may succeed.
        """
        self.read_flags(wait=True)
        with self.applying:
            assert self.snapshot is not None
            snapshot = self.snapshot
            written = self.group.run_on_main(lambda: self.write(snapshot, best, required))
            if written:
                self.saved = self.snapshot.progress.name, best or self.snapshot.progress.best
        self.last_save = time.monotonic()
        self.monitor.resume_clock()
        return written

    def write(self, snapshot: Snapshot, best: str | None, required: bool) -> bool:
        """Write the checkpoint on the first rank, see `save`."""
        started, name = time.monotonic(), snapshot.progress.name
        try:
            save_checkpoint(self.checkpoints, name, self.checkpoint(snapshot, best))
            prune(self.checkpoints, self.config.run.keep_checkpoints, [snapshot.progress.best, name])
        except CheckpointError as error:
            self.record("checkpoint", level="error", name=name, error=str(error))
            if required:
                raise
            logger.error("%s; the run goes on, older checkpoints are whole", error)
            return False
        self.record("checkpoint", name=name, ok=True, seconds=time.monotonic() - started)
        self.write_status("running")
        return True

    def checkpoint(self, snapshot: Snapshot, best: str | None = None) -> Checkpoint:
        """Return a checkpoint, on the CPU, with everything needed to resume from `snapshot`."""
        progress = snapshot.progress
        return Checkpoint(
            weights=to_cpu(self.model.state_dict()),
            training={
                "progress": replace(progress, peaks=self.peaks()).to_dict(),
                "totals": snapshot.totals.tolist(),
                "generators": snapshot.generators,
                "optimizer": to_cpu(self.step.optimizer.state_dict()),
                "scaler": self.step.scaler.state_dict(),
            },
            about=self.about
            | {
                "epoch": progress.epoch,
                "step": progress.step,
                "best": best or progress.best,
                "validation_loss": progress.epochs[-1].validation_loss if progress.epochs else None,
            },
        )

    def restore(self, path: Path, checkpoint: Checkpoint) -> None:
        """Restore the run from `checkpoint`. An imported one holds weights only: training begins with them."""
        fit_weights(self.model, path, checkpoint)
        training, progress = checkpoint.training, self.place
        if progress is None:
            logger.info("%s holds weights only: training begins with them, with a fresh optimizer", path)
            return
        try:
            self.step.optimizer.load_state_dict(training["optimizer"])
            if training["scaler"] and self.step.scaler.is_enabled():
                self.step.scaler.load_state_dict(training["scaler"])
            self.step.totals.reset(training["totals"])
            restore_generators(training["generators"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise unfit_training_state(path, error) from error
        for group in self.step.optimizer.param_groups:
            group["weight_decay"] = self.settings.weight_decay
        best = progress.best
        if best is not None and self.group.run_on_main(lambda: bool(verify_checkpoint(self.checkpoints / best))):
            logger.warning(
                "%s: the best checkpoint so far is missing or damaged: best-checkpoint tracking is reset", best
            )
            progress = replace(progress, best=None, best_epoch=progress.epoch, best_loss=None)
        self.progress = replace(progress, resumes=progress.resumes + 1)
        logger.info(
            "resumed from %s: epoch %d, %d steps of it done, %d in all",
            path, progress.epoch + 1, progress.cycle, progress.step,
        )  # fmt: skip
        if checkpoint.about.get("versions") != self.about["versions"]:
            logger.warning("%s was written by other versions: results may differ in the last digits", path)
        # Not `self.epoch`: readers drop the earlier record of this epoch, which must not be a complete one.
        self.monitor.record("resume", epoch=progress.epoch + 1, step=progress.step, checkpoint=path.name)

    # --- failures -------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> NoReturn:
        """Save a checkpoint if possible, record the reason, and raise the error to report."""
        if is_out_of_memory(error) and not isinstance(error, PgatError):
            error = self.out_of_memory(error)
        if isinstance(error, RankError) and not self.group.is_main:
            error = self.reason_of_main(error)
        stop_requested = isinstance(error, StopRequested | KeyboardInterrupt)
        state = "stopped" if stop_requested or isinstance(error, MemoryLimitError) else "failed"
        reason = f"{type(error).__name__}: {error}"
        if stop_requested or isinstance(error, OutOfMemoryError):
            reason = str(error) or "interrupted"
        code = exit_codes.of_error(error)
        self.record("stop" if state == "stopped" else "error", level="error", memory=True, reason=reason)
        if self.snapshot is not None:
            self.emergency_save(self.snapshot)
        self.write_status(state, reason=reason, exit_code=code)
        if self.all_fail:  # torchrun ends all ranks when one ends: wait until the first has saved
            with suppress(RankError):
                self.group.run_on_main(lambda: None)
        raise error

    def reason_of_main(self, error: RankError) -> RankError:
        """Return `error`, with the exit code of the first rank if its status file shows that it ended the run."""
        status = read_status(self.folder)
        code = status.get("exit_code")
        if status.get("state") not in ("stopped", "failed") or not isinstance(code, int):
            return error
        return RankError(f"rank 0 has ended the run: {status.get('reason')}", exit_code=code)

    def emergency_save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint of a run that ends with an error, if possible."""
        if not self.group.is_main:
            return
        try:
            self.step.optimizer.zero_grad()
            release_caches()
            with self.applying:
                save_checkpoint(self.checkpoints, snapshot.progress.name, self.checkpoint(snapshot))
            logger.info("saved %s: go on with --resume %s", snapshot.progress.name, self.folder)
        except Exception as failure:
            logger.error("no checkpoint could be written: %s; older ones are whole", failure)

    def out_of_memory(self, error: BaseException) -> OutOfMemoryError:
        """Release the memory of the failed step, write a report, and return the error to raise."""
        text = first_line(error)
        error.__traceback__ = None  # its frames hold the tensors of the failed step
        report = memory_report(self.device, self.monitor.reading(), text)
        self.step.optimizer.zero_grad()
        release_caches()
        path = write_report(self.folder, self.report_name("out-of-memory", self.progress.step), report)
        location = self.stage if self.stage != "train" else f"train, epoch {self.epoch}, step {self.progress.step + 1}"
        return OutOfMemoryError(f"out of memory in {location}: {text}; report in {path}. {self.oom_advice()}")

    def report_name(self, what: str, step: int) -> str:
        """Return the file name of a report on `what`; every rank writes its own."""
        return f"{what}-step-{step:08d}{self.group.suffix}.json"

    def oom_advice(self) -> str:
        """Return advice on how to use less memory."""
        if self.stage != "train":
            return (
                "It computes one window at a time: lower model.seq_len or the size of the model, or free memory, and "
                "go on with --resume"
            )
        batch, accumulated = self.settings.batch_size, self.settings.gradient_accumulation_steps
        keeps = isinstance(self.model, FastPGAT) and self.model.execution.keep > 0
        recompute = "Set run.recompute=on. " if keeps and self.about["compiled_regions"] != "whole" else ""
        return (
            f"{recompute}Lower training.batch_size from {batch} (raise training.gradient_accumulation_steps from "
            f"{accumulated}, for the same optimizer step), or model.seq_len; `pgat-fast plan` predicts what fits"
        )

    def last_resort(self, reason: str) -> None:
        """Save from the signal thread, called when a long computation keeps the main thread from stopping in time."""
        note = "nothing was to be saved"
        if not self.group.is_main:
            return
        if not self.applying.acquire(timeout=8.0):
            note = "no checkpoint was written: the one under way may not end; older ones are whole"
        elif self.snapshot is not None:
            # The lock is never released: this process is about to end.
            name = self.snapshot.progress.name
            if not (self.checkpoints / name).exists():
                save_checkpoint(self.checkpoints, name, self.checkpoint(self.snapshot))
            note = f"saved {name}"
        self.write_status("stopped", reason=f"{reason} ({note})", exit_code=exit_codes.of_signal(reason))

    # --- status and records ---------------------------------------------------------------------------------------

    def peaks(self) -> dict[str, float | None]:
        """Return the highest memory use of all processes of the run, in GiB."""
        peaks = dict(self.monitor.peaks())
        for key in ("peak_process_gib", "peak_device_gib"):
            values = [value for value in (peaks.get(key), self.progress.peaks.get(key)) if value is not None]
            peaks[key] = max(values, default=None)
        return peaks

    @property
    def batch_shape(self) -> list[int]:
        """Shape of a batch, [B, S, F]."""
        return [self.settings.batch_size, self.config.model.seq_len, self.config.model.enc_in]

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1; that of the last one when all are complete."""
        return min(self.progress.epoch + 1, self.settings.epochs)

    def record(self, stage: str, **values: Any) -> None:
        step = self.progress.step
        self.monitor.record(stage, epoch=self.epoch, step=step, batch_shape=self.batch_shape, **values)

    def write_status(self, state: str, **more: Any) -> None:
        if not self.group.is_main:
            return
        # Keep the recorded job until the run has begun: a restart must not resume a run that no start has begun.
        job = environment.job_id() if self.begun else read_status(self.folder).get("job")
        position = {"stage": self.stage, "epoch": self.epoch, "step": self.progress.step, "job": job}
        try:
            write_status(self.folder, state, **position, **more)
        except OSError as error:
            logger.error("%s/status.json cannot be written: %s", self.folder, error)


def to_cpu(tree: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor on the CPU. Tensors already there are not copied."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {key: to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(to_cpu, tree))
    return tree


def chunk(items: list[Tensor], size: int) -> list[list[Tensor]]:
    """Split `items` into consecutive parts of length `size`; the last part may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
