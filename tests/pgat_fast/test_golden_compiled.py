"""Compiled, our models compute what the existing one computes: outputs and every gradient."""

import pytest
import torch

from pgat_fast import build_model
from pgat_fast.compat import from_original_layout
from pgat_fast.model.compilation import compile_in_place
from pgat_kernels.torch_features import compile_apart
from tests import golden
from tests.pgat_fast.test_golden import as_list

NEAR_ZERO = ("no_celestial_small", "everything_small")
CASES = {name: torch.float64 if name in NEAR_ZERO else torch.float32 for name in golden.CASES}
"""Case -> dtype: two of them divide by row sums near zero."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(("name", "dtype"), CASES.items())
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # else eager, without a word
def test_outputs_and_gradients_equal_the_existing_model(name: str, dtype: torch.dtype, backend: str) -> None:
    case = golden.load(name)
    state = case.state(dtype)
    ours = from_original_layout(state, case.config)
    model = build_model(case.config, backend=backend).to(dtype).eval()
    model.load_state_dict({key: tensor.detach() for key, tensor in ours.items()})
    if backend == "reference":
        model._compiled_call_impl = compile_apart(model._call_impl, dynamic=False)
    else:
        compile_in_place(model, torch.device("cpu"))
    outputs = as_list(model(*case.inputs(dtype))[0])
    case.check_outputs(outputs)
    case.probed(outputs).backward()
    parameters = dict(model.named_parameters())
    # Onwards through the translation of the layout, to the names of the existing model.
    torch.autograd.backward([ours[key] for key in parameters], [own.grad for own in parameters.values()])
    # Where nothing flows, compiled code hands out zeros and autograd nothing.
    found = {key: tensor.grad for key, tensor in state.items()}
    nothing = [key for key, grad in found.items() if grad is not None and key not in case.gradients and not grad.any()]
    case.check_gradients(found | dict.fromkeys(nothing), tolerance=1e-4)
