"""Shape checks of the model's inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model
from tests.pgat_fast.model.variants import config_of, inputs_of

NAMES = ("x_enc", "x_mark_enc", "x_dec", "x_mark_dec")
CONFIG = config_of("batched")

WRONG: list[tuple[str, tuple[int, ...]]] = [
    ("x_enc", ()),
    ("x_enc", (7,)),
    ("x_enc", (7, 118)),
    ("x_enc", (2, 7, 117)),
    ("x_enc", (2, 8, 118)),  # longer than seq_len
    ("x_enc", (2, 0, 118)),
    ("x_enc", (0, 7, 118)),
    ("x_enc", (2, 7, 118, 1)),
    ("x_mark_enc", ()),
    ("x_mark_enc", (2, 7)),
    ("x_mark_enc", (2, 6, 4)),
    ("x_mark_enc", (3, 7, 4)),
    ("x_mark_enc", (2, 7, 0)),
    ("x_mark_enc", (2, 7, 6)),
    ("x_dec", ()),
    ("x_dec", (2, 5)),
    ("x_dec", (2, 1, 118)),  # shorter than pred_len
    ("x_dec", (2, 5, 117)),
    ("x_dec", (3, 5, 118)),
    ("x_dec", (2, 5001, 118)),  # longer than the position table
    ("x_mark_dec", ()),
    ("x_mark_dec", (2, 4, 4)),
    ("x_mark_dec", (1, 5, 4)),
    ("x_mark_dec", (2, 5, 0)),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(CONFIG).eval()


@pytest.mark.parametrize(("name", "shape"), WRONG)
def test_error_names_input_with_wrong_shape(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    inputs: dict[str, Any] = dict(zip(NAMES, inputs_of(CONFIG), strict=True))
    inputs[name] = torch.zeros(shape)
    if name == "x_dec" and len(shape) == 3:  # adapt the marks, so that only x_dec is wrong
        inputs["x_mark_dec"] = torch.zeros(2, shape[1], 4)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is checked below)
        model(**inputs)
    message = str(caught.value)
    assert message.startswith(f"{name} has shape {list(shape)}, expected ["), message
    assert "expected [2, " in message or name == "x_enc"


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(model(*inputs)[0].shape)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_history_may_be_shorter_than_seq_len(model: nn.Module, steps: int) -> None:
    x_enc, x_mark_enc, x_dec, x_mark_dec = inputs_of(CONFIG)
    assert run(model, (x_enc[:, :steps], x_mark_enc[:, :steps], x_dec, x_mark_dec)) == (2, 2, 4)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_decoder_accepts_any_label_length(model: nn.Module, steps: int) -> None:
    x_enc, x_mark_enc, _, _ = inputs_of(CONFIG)
    assert run(model, (x_enc, x_mark_enc, torch.zeros(2, steps, 118), torch.zeros(2, steps, 4))) == (2, 2, 4)


@pytest.mark.parametrize("columns", [1, 3, 5])
def test_number_of_mark_columns_may_differ_from_tables(model: nn.Module, columns: int) -> None:
    x_enc, _, x_dec, _ = inputs_of(CONFIG)
    assert run(model, (x_enc, torch.zeros(2, 7, columns), x_dec, torch.zeros(2, 5, columns))) == (2, 2, 4)
