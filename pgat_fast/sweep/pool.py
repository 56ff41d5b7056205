"""Execution of the jobs of a sweep in separate processes, as many at a time as the devices of the machine allow."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tqdm import tqdm

from pgat_fast.errors import ConfigError
from pgat_fast.sweep.jobs import Job
from pgat_fast.training.signals import Stop
from pgat_fast.utils.cores import usable_cores
from pgat_fast.utils.io import sync_directory

logger = logging.getLogger(__name__)

LOGS: Final = "logs"
POLL_SECONDS: Final = 0.1
STOP_SECONDS: Final = 60.0
"""Seconds for a job to save a checkpoint and exit after SIGTERM."""


class Place(NamedTuple):
    """Slot for one job at a time, with the environment variables of its process."""

    name: str
    environment: Mapping[str, str]


def places(device: str, at_once: int | None) -> list[Place]:
    """Return one place for every GPU, or `at_once` for each; on a CPU `at_once`, by default one for every two cores.

    Args:
        device: `run.device`; `cuda:1` uses that GPU alone.
        at_once: jobs at a time, on each GPU or on the CPU.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"--jobs is {at_once}: must be at least 1, or 0 to run no jobs")
    import torch

    kind, _, number = device.partition(":")
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        if number:
            return [Place(f"GPU {number}", {})] * (at_once or 1)
        return [Place(f"GPU {name}", {"CUDA_VISIBLE_DEVICES": name}) for name in names for _ in range(at_once or 1)]
    count = at_once or max(1, usable_cores() // 2)
    threads = str(max(1, usable_cores() // count))
    environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    return [Place("CPU", environment)] * count


class _Running(NamedTuple):
    job: Job
    place: Place
    process: subprocess.Popen[bytes]
    log_began: int
    """Size in bytes of the log when the process started: the output of earlier attempts."""


def run_jobs(
    folder: Path, jobs: Sequence[Job], where: Sequence[Place], *, stop: Stop | None = None, progress: bool = True
) -> dict[str, str]:
    """Run all jobs; return the name and the cause of each failure. The other jobs continue.

    The output of a job is in `logs/NAME.log`. An exception that ends the call early, such as StopRequested, first
    makes the running jobs save a checkpoint and waits for them.
    """
    stop = stop or Stop()
    waiting, free, running = list(jobs), list(where), list[_Running]()
    failures: dict[str, str] = {}
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    logger.info("running %d jobs, %d at a time; their output is in %s", len(jobs), len(where), folder / LOGS)
    with tqdm(total=len(jobs), desc="sweep", unit="job", disable=None if progress else True) as bar:
        try:
            while waiting or running:
                stop.check()
                while waiting and free:
                    job, place = waiting.pop(0), free.pop(0)
                    running.append(_start(folder, job, place))
                for ended in [ended for ended in running if ended.process.poll() is not None]:
                    running.remove(ended)
                    free.append(ended.place)
                    bar.update()
                    left = len(waiting) + len(running)
                    logger.info(
                        "%s ended with exit code %d; %d jobs remaining", ended.job.name, ended.process.returncode, left
                    )
                    if ended.process.returncode != 0:
                        failures[ended.job.name] = _failure(folder, ended)
                        bar.write(f"{ended.job.name}: {failures[ended.job.name]}", file=sys.stderr)
                time.sleep(POLL_SECONDS)
        except BaseException:
            _stop(running)
            raise
    sync_directory(folder)
    return failures


def _log(folder: Path, job: Job) -> Path:
    return folder / LOGS / f"{job.name}.log"


def _start(folder: Path, job: Job, place: Place) -> _Running:
    command = [sys.executable, "-m", "pgat_fast", *job.arguments(folder)]
    with _log(folder, job).open("ab") as log:
        # In its own session, so that Ctrl-C only reaches this process, which then stops the jobs.
        began = os.fstat(log.fileno()).st_size
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **place.environment},
        )  # fmt: skip
    return _Running(job, place, process, began)


def _stop(running: Sequence[_Running]) -> None:
    """Make all running jobs save a checkpoint and exit; kill those that do not exit in time."""
    for running_job in running:
        if running_job.process.poll() is None:
            running_job.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for running_job in running:
        try:
            running_job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            running_job.process.kill()


def _failure(folder: Path, one: _Running) -> str:
    """Return the exit status of a job and the last line of its output."""
    log = _log(folder, one.job)
    output = log.read_bytes()[one.log_began :].decode(errors="replace")
    lines = [line for line in output.splitlines() if line.strip()]
    last_line = f": {lines[-1].strip()[:300]}" if lines else ""
    status = one.process.returncode
    description = f"signal {-status}" if status < 0 else f"exit code {status}"
    return f"{description}{last_line} (output in {log})"
