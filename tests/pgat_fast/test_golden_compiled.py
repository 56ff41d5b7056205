"""Our compiled model equals the existing model: outputs and all gradients.

The model without bodies is compiled whole, and the other one with the regions that are compiled on a CPU. Compiling all
parts of a model whole takes minutes: see `optimized/test_pgat.py` for their graphs, and `training/compile_check.py` for
the comparison with an eager step at the start of every compiled run.
"""

import pytest
import torch

from pgat_fast import build_model
from pgat_fast.compat import from_original_layout
from pgat_fast.model.compilation import Regions, compile_in_place
from tests import golden
from tests.pgat_fast.test_golden import BADLY_CONDITIONED, as_list, spread_in_float32


@pytest.mark.compile
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "regions"), [("no_celestial_small", "whole"), ("hierarchical_small", "operators")])
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)  # otherwise torch falls back to eager silently
def test_compiled_outputs_and_gradients_equal_existing_model(name: str, regions: Regions) -> None:
    case = golden.load(name)
    state = case.state(torch.float32)
    translated = from_original_layout(state, case.config)
    model = build_model(case.config, backend="torch").eval()
    model.load_state_dict({key: tensor.detach() for key, tensor in translated.items()})
    compile_in_place(model, torch.device("cpu"), regions=regions)
    of_outputs, of_gradients = spread_in_float32(name) if name in BADLY_CONDITIONED else (None, None)
    outputs = as_list(model(*case.inputs(torch.float32))[0])
    case.check_outputs(outputs, of_outputs)
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
    case.check_gradients(gradients | dict.fromkeys(zero_keys), of_gradients)
