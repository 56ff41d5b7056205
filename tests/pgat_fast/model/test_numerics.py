"""Gates are computed in float32 at every precision of the products."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pgat_fast import build_model
from pgat_fast.model.numerics import at_least_float32, gate
from tests.pgat_fast.model import variants


class SigmoidInputs(TorchFunctionMode):
    """Mode that records the dtypes of the inputs of sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.sigmoid, torch.Tensor.sigmoid):
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["hierarchical", "batched"])
def test_gates_are_computed_in_float32_under_autocast(name: str) -> None:
    config = variants.config_of(name)
    model, inputs = build_model(config, backend="reference"), variants.inputs_of(config)
    with torch.autocast("cpu", torch.bfloat16), SigmoidInputs() as sigmoid_inputs:
        model(*inputs)
    # two in section 1, aspects, body fusion, three in the encoder; calibration and three interactions in section 6b
    assert len(sigmoid_inputs.dtypes) == (11 if name == "hierarchical" else 7)
    assert set(sigmoid_inputs.dtypes) == {torch.float32}


def test_float64_is_kept_and_16_bits_are_promoted() -> None:
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        assert at_least_float32(torch.ones(1, dtype=dtype)).dtype == expected
        assert gate(torch.ones(1, dtype=dtype)).dtype == expected
