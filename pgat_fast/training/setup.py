"""Preparation of a run: the objects that a configuration describes, from the data to the optimizer. Writes nothing."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pgat_fast.config import Config, dump_config
from pgat_fast.data.load import load_splits
from pgat_fast.data.windows import batch_indices, example
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.errors import ConfigError
from pgat_fast.model import build_model, kernel_summary, recompute_summary, resolve_backend
from pgat_fast.model.compilation import Regions, compile_in_place, decide_compile, expected_batch_seconds
from pgat_fast.model.compile_cache import CompileCache
from pgat_fast.model.kernel_choice import KernelChoice
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision, resolve_precision
from pgat_fast.monitoring.tensorboard import writer_class
from pgat_fast.training.calibration import choose_kernels
from pgat_fast.training.estimate import MEASURED_STEPS, expected_compile_seconds, measure_batch_seconds, program_key
from pgat_fast.training.optimizer_step import OptimizerStep, make_optimizer
from pgat_fast.training.results import Results, finish_run
from pgat_fast.training.resume import ResumePoint
from pgat_fast.training.rng import seed_everything
from pgat_fast.training.run_folder import finished_results
from pgat_fast.training.run_metadata import compiled_regions, describe_run, kept_precision
from pgat_fast.training.state import end_of_training, most_steps

logger = logging.getLogger(__name__)


class Setup:
    """The parts of a run. The trainer sees the configuration through them only.

    Attributes:
        settings, run: the sections `training` and `run` of the configuration.
        table, splits: the data.
        batch_shape: shape of a batch, [B, S, F].
        model: on its device, compiled if that pays.
        step: optimizer steps of the model.
        about: metadata of all checkpoints of this process.
        resume_point: checkpoint to resume; the trainer sets it to None once it is restored, to free its memory.
        cache: cache of compiled code; None if nothing is compiled.
        program: key of the compiled code in the cache.
        config_yaml: content of `config.yaml`.
        write_results: `finish_run` for this configuration and data.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        group: SingleProcess,
        *,
        resume_point: ResumePoint | None = None,
        cache: CompileCache | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Check everything that can be checked before a run, and build its parts.

        Args:
            config: the whole configuration. Only this class and what it calls resolve it.
            device: device of this rank.
            group: the ranks that train together. Collective.
            resume_point: checkpoint to resume.
            cache: cache of compiled code; None if nothing is compiled.
            check_stop: raises if the run was asked to stop.

        Raises:
            DataError, ConfigError, BackendError, CheckpointError: the data, settings, machine or checkpoint do not
                allow this run.
        """
        self.cache, self.settings, self.run = cache, config.training, config.run
        settings, run = self.settings, self.run
        self.resume_point = point = resume_point
        if point is not None:
            point.check_config(config)
        if settings.batch_size < group.size:
            raise ConfigError(
                f"training.batch_size {settings.batch_size} is the batch of all {group.size} ranks together: raise "
                "it, so that each rank has a window, or start fewer ranks"
            )
        if settings.lr_schedule == "warmup_cosine" and settings.warmup_epochs >= settings.epochs:
            logger.warning("training.warmup_epochs %d: the run ends before the warm-up does", settings.warmup_epochs)
        if run.tensorboard:
            writer_class()
        about = {} if point is None else point.checkpoint.about
        precision = resolve_precision(run.precision, device, kept_precision(about))
        seed_everything(settings.seed, deterministic=run.deterministic)
        self.table, self.splits = load_splits(config.data, config.model, device)
        if point is not None:
            point.check_data(self.table)
        batch_indices(len(self.splits.train), settings.batch_size, drop_last=True)  # rejects a split without a batch
        self.batch_shape = [settings.batch_size, config.model.seq_len, config.model.enc_in]
        kernels: KernelChoice | None = None
        if run.backend == "auto":
            # Training states of earlier versions name no kernels, because their table was empty.
            trained = point is not None and point.progress is not None
            resumed_kernels = about.get("kernels", "none" if trained else None)
            kernels = choose_kernels(
                config, device, precision, len(self.splits.train),
                group=group, resumed=resumed_kernels, check_stop=check_stop,
            )  # fmt: skip
        self.model = build_model(config, kernels=kernels)
        self.model.to(device)
        self.program = program_key(config, device)
        regions = self._choose_regions(config, device, group, precision, check_stop)
        if isinstance(self.model, FastPGAT):
            logger.info("recompute %s: %s", run.recompute, recompute_summary(self.model.execution, regions))
        if regions != "none":
            # CUDA graphs would overwrite gradients that are summed over several batches or ranks.
            compile_in_place(self.model, device, regions=regions, graphs=not group.lockstep)
        self.step = OptimizerStep(
            self.model, make_optimizer(self.model, settings), config.model, settings, precision, device,
            regions=regions, graphs=regions == "whole" and device.type == "cuda" and not group.lockstep, group=group,
        )  # fmt: skip
        used = kernel_summary(self.model)
        if (resumed := about.get("kernels", used)) != used:
            logger.warning(
                "kernels: the run began with %s and continues with %s: results will differ by rounding",
                resumed,
                used,
            )
        self.about = describe_run(config, self.table, self.splits) | {"kernels": used, "precision": precision}
        self.config_yaml = dump_config(config).encode()
        self.write_results = partial(finish_run, config, self.table, self.splits)

    def _choose_regions(
        self,
        config: Config,
        device: torch.device,
        group: SingleProcess,
        precision: Precision,
        check_stop: Callable[[], None],
    ) -> Regions:
        """Return the regions to compile: those of the resumed run, or what suits the length of the whole run.

        Several ranks must decide alike, so they use the settings alone and neither measure nor look into the cache.
        """
        settings, model, windows = self.settings, self.model, len(self.splits.train)
        accumulated = settings.gradient_accumulation_steps
        resumed = None if self.resume_point is None else compiled_regions(self.resume_point.checkpoint.about)
        seconds = accumulated * expected_batch_seconds(config, device) / group.size
        undecided = self.run.compile == "auto" and resumed is None
        long_run = most_steps(settings, windows, seconds) >= MEASURED_STEPS
        if undecided and long_run and device.type == "cpu" and not group.lockstep and isinstance(model, FastPGAT):
            with torch.random.fork_rng(devices=[]):
                inputs = example(config.model, settings.batch_size)[:4]
            seconds = accumulated * measure_batch_seconds(model, inputs, precision, device, check_stop)
        return decide_compile(
            self.run.compile,
            resolve_backend(self.run.backend),
            device,
            expected_steps=most_steps(settings, windows, seconds),
            seconds_per_step=seconds,
            compile_seconds=expected_compile_seconds(None if group.lockstep else self.cache, self.program, device),
            previous=resumed,
        )

    def earlier_results(self, folder: Path) -> Results | None:
        """Return the results of the run in `folder` if it has reached the end that these settings ask for."""
        progress = None if self.resume_point is None else self.resume_point.progress
        if progress is None or end_of_training(progress, self.settings) is None:
            return None
        return finished_results(folder)
