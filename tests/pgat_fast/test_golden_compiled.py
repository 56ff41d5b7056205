"""Our compiled model equals the existing model: outputs and all gradients.

One combiner is tested with the whole model compiled, which takes minutes, the other with the regions compiled on a CPU.
"""

from dataclasses import replace

import pytest
import torch

from pgat_fast import build_model
from pgat_fast.compat import from_original_layout
from pgat_fast.model.compilation import compile_in_place
from pgat_fast.model.optimized.pgat import FastPGAT
from tests import golden
from tests.pgat_fast.test_golden import as_list


@pytest.mark.compile
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "regions"), [("batched_small", "whole"), ("hierarchical_small", "operators")])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # otherwise torch falls back to eager silently
def test_compiled_outputs_and_gradients_equal_existing_model(name: str, regions: str) -> None:
    case = golden.load(name)
    state = case.state(torch.float32)
    translated = from_original_layout(state, case.config)
    model = build_model(case.config, backend="torch").eval()
    model.load_state_dict({key: tensor.detach() for key, tensor in translated.items()})
    assert isinstance(model, FastPGAT)
    if regions == "whole":
        compile_in_place(model, torch.device("cpu"))
    else:
        model.set_execution(replace(model.execution, compiled=True))
    outputs = as_list(model(*case.inputs(torch.float32))[0])
    case.check_outputs(outputs)
    case.probed(outputs).backward()
    parameters = dict(model.named_parameters())
    # Propagate the gradients through the layout translation to the names of the existing model.
    torch.autograd.backward(
        [translated[key] for key in parameters], [parameter.grad for parameter in parameters.values()]
    )
    # For unused parameters compiled code returns zeros and autograd returns None.
    gradients = {key: tensor.grad for key, tensor in state.items()}
    zero_keys = [
        key for key, grad in gradients.items() if grad is not None and key not in case.gradients and not grad.any()
    ]
    case.check_gradients(gradients | dict.fromkeys(zero_keys))
