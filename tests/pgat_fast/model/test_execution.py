"""What the section `run` says of how to compute."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from pgat_fast import load_config
from pgat_fast.model.execution import Execution


@pytest.mark.parametrize(
    ("settings", "execution"),
    [
        ([], Execution()),
        (["run.combiner_chunk=off"], Execution(combiner_chunk=None)),
        (["run.combiner_chunk=7"], Execution(combiner_chunk=7)),
        (["run.exact_dropout=true"], Execution(exact_dropout=True)),
        (["run.compile=on"], Execution(compiled=False)),  # whether it can be is not decided by a setting
    ],
)
def test_it_is_what_the_settings_ask_for(settings: list[str], execution: Execution) -> None:
    run = load_config(None, settings).run
    assert Execution.of(run) == execution
    assert Execution.of(run, compiled=True).compiled


def test_the_defaults_are_those_of_the_schema() -> None:
    assert Execution() == Execution(compiled=False, combiner_chunk="auto", exact_dropout=False, kernels=False)


def test_it_does_not_change() -> None:
    execution: Any = Execution()
    with pytest.raises(FrozenInstanceError):
        execution.compiled = True
