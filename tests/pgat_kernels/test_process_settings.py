"""Settings of the process that several threads change are restored, whatever order their contexts are left in."""

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier, Thread

import pytest

from pgat_kernels.process_settings import LOCK, SharedSetting


class Process:
    """A process with one setting."""

    def __init__(self, value: str = "before") -> None:
        self.value = value

    def shared(self, **options: object) -> SharedSetting[str]:
        return SharedSetting(lambda: self.value, lambda value: setattr(self, "value", value), **options)


def in_thread(function: object) -> None:
    thread = Thread(target=function)
    thread.start()
    thread.join()


def test_contexts_nest_and_the_innermost_applies() -> None:
    process = Process()
    setting = process.shared()
    with setting.set_to("a"):
        with setting.set_to("b"):
            assert process.value == setting.asked() == "b"
        assert process.value == setting.asked() == "a"
    assert process.value == setting.asked() == "before"


def test_latest_request_of_all_threads_applies_by_default() -> None:
    values = ["initial"]
    setting = SharedSetting(lambda: values[0], lambda value: values.__setitem__(0, value))
    other = setting.set_to("second")
    with setting.set_to("first"):
        thread = Thread(target=other.__enter__)
        thread.start()
        thread.join()
        assert values == ["second"]
        with setting.set_to("third"):
            assert values == ["third"]
        assert setting.is_open()
    other.__exit__(None, None, None)
    assert values == ["initial"]
    assert not setting.is_open()


def test_setting_is_restored_after_an_error() -> None:
    process = Process()
    setting = process.shared()
    with pytest.raises(ZeroDivisionError), setting.set_to("a"), setting.set_to("b"):
        raise ZeroDivisionError
    assert process.value == "before"


def test_setting_is_restored_after_an_invalid_value() -> None:
    process = Process()

    def write(value: str) -> None:
        if value == "invalid":
            raise ValueError(value)
        process.value = value

    setting = SharedSetting(lambda: process.value, write)
    with pytest.raises(ValueError, match="invalid"), setting.set_to("a"), setting.set_to("invalid"):
        pass
    assert process.value == "before"


def test_contexts_may_be_left_in_any_order() -> None:
    process = Process()
    setting = process.shared()
    first, second = ExitStack(), ExitStack()
    first.enter_context(setting.set_to("a"))
    in_thread(lambda: second.enter_context(setting.set_to("a")))
    first.close()
    assert process.value == "a"
    in_thread(second.close)
    assert process.value == "before"


@pytest.mark.parametrize("values", [("a", "b"), ("b", "a")])
def test_chosen_value_applies_to_all_threads(values: tuple[str, str]) -> None:
    process = Process()
    setting = process.shared(choose=min)
    here, there = values
    with setting.set_to(here), ExitStack() as other:
        in_thread(lambda: other.enter_context(setting.set_to(there)))
        assert process.value == "a"
        assert setting.asked() == here
    assert process.value == "before"


def test_threads_that_overlap_leave_nothing_behind() -> None:
    process = Process()
    setting = process.shared(choose=min)
    barrier = Barrier(4)

    def use(number: int) -> None:
        barrier.wait()
        for k in range(200):
            with setting.set_to("ab"[(number + k) % 2]), setting.set_to("c"):
                assert process.value in ("a", "b", "c")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert process.value == "before"


def test_value_that_other_code_sets_meanwhile_is_kept() -> None:
    process = Process()
    setting = process.shared()
    with setting.set_to("a"):
        process.value = "other"
    assert process.value == "other"
    with setting.set_to("a"):
        process.value = "again"
        with setting.set_to("b"):
            assert process.value == "b"
        assert process.value == "a"
    assert process.value == "again"


def test_generator_left_half_way_restores_when_it_is_collected() -> None:
    process = Process()
    setting = process.shared()

    def values() -> Iterator[int]:
        with setting.set_to("a"):
            yield from range(9)

    iterator = values()
    next(iterator)
    assert process.value == "a"
    del iterator
    gc.collect()
    assert process.value == "before"
    iterator = values()
    next(iterator)
    in_thread(iterator.close)
    assert process.value == "before"


def test_contexts_entered_by_reading_or_writing_are_counted() -> None:
    """A signal handler or finalizer may run in the middle of an update."""
    process, stack = Process(), ExitStack()

    def read() -> str:
        value = process.value
        stack.close()
        return value

    setting = SharedSetting(read, lambda value: setattr(process, "value", value))
    inner = setting.set_to("a")
    stack.enter_context(inner)
    with setting.set_to("b"):
        assert process.value == "b"
    assert process.value == "before"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_process_has_the_settings_of_the_forking_thread_and_a_free_lock() -> None:
    process = Process()
    setting = process.shared()

    def values_in_child() -> bytes:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            free: list[bool] = []
            in_thread(lambda: free.append(LOCK.acquire(timeout=5)))
            os.write(writer, f"{process.value} {free[0]}".encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            return file.read()

    with ExitStack() as other:
        in_thread(lambda: other.enter_context(setting.set_to("a")))
        assert values_in_child() == b"before True"
        assert process.value == "a"
        with setting.set_to("b"):
            assert values_in_child() == b"b True"
    assert process.value == "before"
