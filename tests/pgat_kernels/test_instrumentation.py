"""Tests of the contexts that observe launches, configurations and chunks, in one thread and in several."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pgat_kernels.dispatch import why_no_kernels
from pgat_kernels.instrumentation import (
    Launch,
    architecture_of_launches,
    chunk_device_type,
    chunk_sizes_of,
    executor,
    few_chunks,
    has_few_chunks,
    intercept_launches,
    note_compiled,
    record_compiled,
    record_configurations,
    record_launches,
    try_configuration,
)
from pgat_kernels.launch_configs import TABLE, configuration
from pgat_kernels.tuning_table import Case, Configuration

CPU = torch.device("cpu")
CASE = next(case for case in TABLE if case.kernel == "gru forward")


def launch() -> Launch:
    return Launch("kernel", 1, (), {}, Configuration(16, 4, 1), 0)


def in_another_thread() -> tuple[object, ...]:
    """Return what another thread sees, as torch's threads for the backward pass on a GPU do."""
    with ThreadPoolExecutor(1) as pool:
        seen = executor, architecture_of_launches, lambda: configuration(*CASE), has_few_chunks
        return tuple(pool.submit(read).result() for read in seen)


def test_launches_and_configurations_apply_to_all_threads_and_chunks_to_one() -> None:
    chosen = Configuration(32, 2, 1)
    untouched = in_another_thread()
    assert untouched[:2] == (None, None)
    with record_launches("sm_90") as launches, try_configuration(CASE, chosen), few_chunks():
        execute, architecture, tried, few = in_another_thread()
        assert (architecture, tried, few) == ("sm_90", chosen, False)
        assert has_few_chunks()
        execute(launch())
    assert len(launches) == 1
    assert in_another_thread() == untouched
    assert not has_few_chunks()


def test_contexts_may_be_left_in_any_order() -> None:
    first, second = [], list[Launch]()
    outer, inner = intercept_launches(first.append), intercept_launches(second.append)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert executor() == second.append
    inner.__exit__(None, None, None)
    assert executor() is None


def test_context_is_left_after_an_error() -> None:
    with record_launches(), chunk_sizes_of("cuda"):
        assert chunk_device_type(CPU) == "cuda"
        assert why_no_kernels(CPU) is None
    with pytest.raises(KeyError), record_launches(), chunk_sizes_of("cuda"):
        raise KeyError
    assert executor() is None
    assert chunk_device_type(CPU) == "cpu"
    assert why_no_kernels(CPU) is not None


def test_every_open_list_gets_kernels_and_cases() -> None:
    with record_compiled() as outer, record_configurations() as outer_cases:
        note_compiled("first", None)
        with record_compiled() as inner, record_configurations() as inner_cases:
            note_compiled("second", None)
            configuration(*CASE)
    note_compiled("third", None)
    assert (outer, inner) == ([("first", None), ("second", None)], [("second", None)])
    assert outer_cases == inner_cases == [CASE]


def test_latest_trial_of_a_case_counts() -> None:
    wide, narrow = Configuration(64, 8, 1), Configuration(16, 8, 1)
    other = Case("gru backward", 4, 128)
    with try_configuration(CASE, wide), try_configuration(other, wide):
        with try_configuration(CASE, narrow):
            assert configuration(*CASE) == narrow
        assert configuration(*CASE) == configuration(*other) == wide
    assert configuration(*CASE) == TABLE[CASE]["default"]
