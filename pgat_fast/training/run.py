"""Start or resume a training run: its checkpoint, folder, lock and log, from the configuration to the results."""

import logging
from contextlib import ExitStack
from pathlib import Path

from pgat_fast.config import Config
from pgat_fast.distributed import environment
from pgat_fast.distributed.process_group import device_of_rank, process_group
from pgat_fast.model.compile_cache import compile_cache
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training.checkpoint import remove_orphans
from pgat_fast.training.results import Results
from pgat_fast.training.resume import ResumePoint, choose_resume_point
from pgat_fast.training.rng import restored_generators
from pgat_fast.training.run_folder import CHECKPOINTS, checkpoint_of, locked, log_file, new_folder, run_of_job
from pgat_fast.training.setup import Setup
from pgat_fast.training.signals import Stop
from pgat_fast.training.trainer import Trainer
from pgat_fast.utils.device import resolve_device

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

    The run seeds the random number generators of the process (python, numpy, torch) and draws from them; they, and all
    other settings of the process that it changes, are as before when it ends. Other threads must not draw from them
    meanwhile, if the run is to be repeatable.

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
    device, run = device_of_rank(resolve_device(config.run.device)), config.run
    with ExitStack() as stack:
        stack.enter_context(restored_generators())
        cache = stack.enter_context(compile_cache()) if run.compile != "off" else None
        group = stack.enter_context(process_group(device, run.rank_timeout_seconds))
        restarted = any(group.all_gather(environment.restart_count()))  # counted by each machine
        point: ResumePoint | None = None

        def read_on_main() -> Path | None:
            nonlocal point
            point = _resume_point(config, resume, restarted, stack)
            return None if point is None else point.path

        checkpoint = group.run_on_main(read_on_main)
        if checkpoint is not None and point is None:  # on the other ranks
            point = ResumePoint.read(checkpoint)
        setup = Setup(config, device, group, resume_point=point, cache=cache, check_stop=stop.check)
        point = None  # the trainer frees its memory
        folder = group.run_on_main(lambda: _open_folder(config, checkpoint, stack))
        results = group.run_on_main(lambda: setup.earlier_results(folder))
        if results is not None:
            logger.info("%s: this run is complete; to train further, raise training.epochs or max_steps", folder)
            return folder, results
        monitor = stack.enter_context(
            Monitor(
                folder,
                device,
                seq_len=config.model.seq_len,
                interval=run.monitor_interval,
                metrics_level=run.metrics_level if group.is_main else "off",
                memory_level=run.memory_level if group.is_main else "off",
                tensorboard=run.tensorboard and group.is_main,
                memory_limit_gb=run.memory_limit_gb,
                device_memory_limit_gb=run.device_memory_limit_gb,
            )
        )
        return folder, Trainer(setup, folder, monitor, stop, show_progress=progress and group.is_main).run()


def _resume_point(config: Config, resume: Path | None, restarted: bool, stack: ExitStack) -> ResumePoint | None:
    """Return the checkpoint to resume, and lock its run folder; None for a new run.

    After a restart by torchrun, it is the newest checkpoint of the run that an earlier start of this job began.
    """
    job = environment.job_id()
    if restarted and job is not None:
        resume = run_of_job(job, config, resume) or resume
    if resume is None:
        return None
    folder, name = checkpoint_of(resume)
    stack.enter_context(locked(folder))
    for orphan in remove_orphans(folder / CHECKPOINTS):
        logger.warning("%s: removed, left by a process that was killed", orphan)
    return choose_resume_point(folder, name)


def _open_folder(config: Config, checkpoint: Path | None, stack: ExitStack) -> Path:
    """Return the folder of the run of `checkpoint`, or a new, locked folder, and open its log."""
    if checkpoint is not None:
        folder = checkpoint.parent.parent
    else:
        folder = new_folder(Path(config.run.output), config.run.name)
        stack.enter_context(locked(folder))
    stack.enter_context(log_file(folder))
    return folder
