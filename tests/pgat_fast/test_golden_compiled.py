"""Compiled as a whole, our model computes what the existing one computes: outputs and every gradient.

For each combiner once: a compilation of the whole model takes minutes.
"""

import pytest
import torch

from pgat_fast import build_model
from pgat_fast.compat import from_original_layout
from pgat_fast.model.compilation import compile_in_place
from tests import golden
from tests.pgat_fast.test_golden import as_list


@pytest.mark.compile
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["batched_small", "hierarchical_small"])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # else eager, without a word
def test_outputs_and_gradients_equal_the_existing_model(name: str) -> None:
    case = golden.load(name)
    state = case.state(torch.float32)
    ours = from_original_layout(state, case.config)
    model = build_model(case.config, backend="torch").eval()
    model.load_state_dict({key: tensor.detach() for key, tensor in ours.items()})
    compile_in_place(model, torch.device("cpu"))
    outputs = as_list(model(*case.inputs(torch.float32))[0])
    case.check_outputs(outputs)
    case.probed(outputs).backward()
    parameters = dict(model.named_parameters())
    # Onwards through the translation of the layout, to the names of the existing model.
    torch.autograd.backward([ours[key] for key in parameters], [own.grad for own in parameters.values()])
    # Where nothing flows, compiled code hands out zeros and autograd nothing.
    found = {key: tensor.grad for key, tensor in state.items()}
    nothing = [key for key, grad in found.items() if grad is not None and key not in case.gradients and not grad.any()]
    case.check_gradients(found | dict.fromkeys(nothing))
