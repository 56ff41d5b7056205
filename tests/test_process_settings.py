"""Nothing of the package leaves a setting of the process changed: with threads, errors, generators left half way."""

import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from pgat_fast import build_model, compat, load_config, train
from pgat_fast.data.build import build_file
from pgat_fast.evaluation.split_forecasts import _forecasts
from pgat_fast.forecasting.evaluate import evaluate
from pgat_fast.forecasting.load_run import Run, load_run
from pgat_fast.forecasting.predict import predict
from pgat_fast.model.compilation import eager
from pgat_fast.model.compile_cache import VARIABLE, compile_cache
from pgat_fast.model.precision import float32_products_in, products_in
from pgat_fast.plan.trace import trace_memory
from pgat_fast.report.figure_style import new_figure, to_png, to_svg
from pgat_fast.training.run_folder import log_file
from tests.pgat_fast.forecasting.small_run import make_run
from tests.pgat_fast.model.variants import SMALL, inputs_of, loss_of

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = SMALL | {
    "combiner": "batched",
    "fusion_layers": 1,
    "seq_len": 5,
    "n_heads": 1,
    "d_model": 13,
}


def precisions() -> dict[str, str]:
    backends: Any = torch.backends
    holders = {
        "all": backends, "onednn": backends.mkldnn, "cuda": backends.cudnn,
        "onednn matmul": backends.mkldnn.matmul, "onednn conv": backends.mkldnn.conv, "onednn rnn": backends.mkldnn.rnn,
        "cuda matmul": backends.cuda.matmul, "cudnn conv": backends.cudnn.conv, "cudnn rnn": backends.cudnn.rnn,
    }  # fmt: skip
    found = {name: holder.fp32_precision for name, holder in holders.items()}
    return found | {"old interface": torch.get_float32_matmul_precision()}


def generators() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": str(np.random.get_state()), "torch": torch.get_rng_state().tolist()}


def settings() -> dict[str, Any]:
    """Return the settings of the process, except for the random number generators."""
    import matplotlib as mpl
    from torch.nn.modules import module as modules

    umask = os.umask(0o22)
    os.umask(umask)
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    loggers = {name: logging.getLogger(name) for name in (None, "pgat_fast", "matplotlib", "torch")}
    configs = {
        name: sys.modules[name].get_config_copy()
        for name in ("torch._dynamo.config", "torch._inductor.config", "torch._functorch.config")
        if name in sys.modules
    }
    return {
        "precisions": precisions(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "defaults of torch": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.enabled,
            torch._C._get_mkldnn_enabled(),
        ),
        "modes of torch": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled(),
            torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(),
            torch._C._only_lift_cpu_tensors(), torch._C._len_torch_dispatch_stack(),
            torch._C._len_torch_function_stack(),
        ),
        "functions of torch": [getattr(F, name) for name in sorted(F.__all__) if hasattr(F, name)]
        if hasattr(F, "__all__")
        else [F.dropout, F.softmax, F.layer_norm, F.linear],
        "hooks of all modules": [
            len(hooks) for name, hooks in vars(modules).items() if "_global" in name and isinstance(hooks, dict)
        ],
        "compilers": configs,
        "numpy": (np.geterr(), np.geterrcall(), np.get_printoptions()),
        "pandas": [pd.get_option(name) for name in ("display.max_rows", "display.width")],
        "matplotlib": dict(mpl.rcParams.copy()),
        "backend of matplotlib": (mpl.get_backend(auto_select=False), "matplotlib.pyplot" in sys.modules),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": [
            (log.level, list(log.handlers), list(log.filters), log.propagate, log.disabled) for log in loggers.values()
        ] + [logging.root.manager.disable, logging.getLoggerClass(), logging.lastResort],
        "environment": dict(os.environ),
        "folders": (Path.cwd(), umask, tempfile.tempdir, list(sys.path)),
        "signals": ({number: signal.getsignal(number) for number in signal.valid_signals()}, wakeup),
        "python": (
            sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold(), gc.get_debug(),
            faulthandler.is_enabled(), sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook,
            sys.stdout, sys.stderr, list(sys.argv), sys.gettrace(), sys.getprofile(), len(gc.callbacks),
        ),
        "limits": (socket.getdefaulttimeout(), decimal.getcontext().prec, locale.setlocale(locale.LC_ALL)),
        "processes": multiprocessing.get_start_method(allow_none=True),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    }  # fmt: skip


def changed(before: dict[str, Any]) -> dict[str, Any]:
    after = settings()
    return {name: (before[name], after[name]) for name in before if str(before[name]) != str(after[name])}


@pytest.fixture
def run(tiny: list[str], tmp_path: Path) -> Run:
    make_run(tmp_path / "run", tiny)
    return load_run(tmp_path / "run", device="cpu")


def train_step(_: int = 0) -> None:
    model = build_model(SETTINGS)
    config = load_config(SETTINGS)
    optimizer = torch.optim.AdamW(model.parameters())
    with products_in("bf16", CPU):
        result = model(*inputs_of(config))
    with float32_products_in("bf16", CPU):
        loss_of(config, result).backward()
    optimizer.step()


def failing_step(_: int = 0) -> None:
    model = build_model(SETTINGS)
    with pytest.raises(ZeroDivisionError), products_in("high", CPU), eager(model):
        raise_after(model(*inputs_of(load_config(SETTINGS))))


def raise_after(_: object) -> None:
    raise ZeroDivisionError


def draw(number: int = 0) -> None:
    figure = new_figure(1.0)
    figure.add_subplot().plot([0, 1], [number, 1])
    to_svg(figure, f"figure-{number}")
    to_png(figure)
    with pytest.raises(ValueError, match="metadata"):
        figure.savefig(os.devnull, format="svg", metadata={"metadata": 1})


@pytest.mark.parametrize(
    "group",
    # Building a file of data, an evaluation, a plan: three times each.
    ["models", pytest.param("files", marks=pytest.mark.slow)],
)
def test_settings_after_calls_in_threads(group: str, run: Run, data_file: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    def failing_predict(_: int) -> None:
        failing = load_run(run.folder, device="cpu")
        failing.model.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            predict(failing, data_file)

    def abandoned(_: int) -> Iterator[Any]:
        """Return a generator that has computed one forecast and is never ended."""
        from pgat_fast.data.load import load_splits

        _, splits = load_splits(run.config.data, run.config.model, CPU)
        iterator = _forecasts(run.model, splits.test, [torch.tensor([0]), torch.tensor([1])], None)
        next(iterator)
        return iterator

    works: dict[str, list[Callable[[int], Any]]] = {
        "models": [train_step, failing_step, failing_predict, lambda _: predict(run, data_file)],
        "files": [
            draw, abandoned,
            lambda _: compat.Model(SETTINGS),
            lambda _: evaluate(run),
            lambda _: load_run(run.folder, device="cpu"),
            lambda number: build_file(tmp_path / f"built-{number}.csv", rows=10),
            lambda _: trace_memory(load_config(SETTINGS), 1, torch.bfloat16, device="cuda"),
        ],
    }  # fmt: skip
    for work in works[group]:  # what these import for the first time is not a change by them
        work(0)
    before = settings()
    for number, work in enumerate(works[group]):
        work(3 + number)
    assert changed(before) == {}
    with ThreadPoolExecutor(4) as pool:
        kept = [pool.submit(work, number) for number in (1, 2) for work in works[group]]
        results = [future.result() for future in kept]
    # pandas exchanges the filters of warnings by `catch_warnings`, which is not safe in threads (see Python's page).
    assert set(changed(before)) <= {"warnings"}
    assert len(results) == 2 * len(works[group])


def test_package_does_not_exchange_filters_of_warnings() -> None:
    """Threads would restore each other's."""
    files = [path for folder in ("pgat_fast", "kernels") for path in Path(folder).rglob("*.py")]
    assert len(files) > 100
    assert not [path for path in files if "catch_warnings" in path.read_text(encoding="utf-8")]


def test_forecasts_do_not_touch_random_number_generators(run: Run, data_file: Path) -> None:
    before = generators()
    predict(run, data_file)
    load_run(run.folder, device="cpu")
    assert generators() == before


def test_loading_a_run_leaves_the_draws_of_other_threads_alone(run: Run) -> None:
    torch.manual_seed(3)
    expected = torch.rand(300)
    torch.manual_seed(3)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: [load_run(run.folder, device="cpu") for _ in range(3)])
        actual = []
        while not loading.done() and len(actual) < 290:
            actual.append(torch.rand(1))
            threading.Event().wait(0.003)
        loading.result()
    actual.append(torch.rand(300 - len(actual)))
    assert torch.equal(torch.cat(actual), expected)


def test_training_restores_settings_and_generators(tiny: list[str]) -> None:
    config = load_config(None, [*tiny, "training.epochs=1", "training.max_steps=1", "training.warmup_epochs=0"])
    before = None
    for _ in range(2):  # the first one imports what is not imported yet
        before = settings(), generators()
        train(config, progress=False)
    assert before is not None
    assert changed(before[0]) == {}
    assert generators() == before[1]
    invalid = load_config(None, [*tiny, "training.batch_size=1000"])
    with pytest.raises(Exception, match="batch"):
        train(invalid, progress=False)
    assert changed(before[0]) == {}
    assert generators() == before[1]


def test_settings_that_runs_share_are_restored_by_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    logger = logging.getLogger("pgat_fast")
    before = settings()
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    outer, inner = log_file(first), log_file(second)
    caches = compile_cache(), compile_cache()
    outer.__enter__()
    inner.__enter__()
    assert caches[0].__enter__() is not None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(caches[1].__enter__).result() is not None
    outer.__exit__(None, None, None)
    logger.info("a message")
    inner.__exit__(None, None, None)
    for cache in caches:
        cache.__exit__(None, None, None)
    assert "a message" in (second / "train.log").read_text()
    assert changed(before) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_process_forked_during_a_forecast_of_another_thread_has_the_settings_of_before() -> None:
    before = precisions()
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with products_in("high", CPU):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=compute)
    thread.start()
    entered.wait(20)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if precisions() == before else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert precisions() == before
