"""Cached results on fake tensors equal those of torch's `FakeTensorMode`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pgat_fast.plan import fake_cache, trace
from pgat_fast.plan.fake_cache import without_data
from tests.pgat_fast.model.variants import config_of


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cache, "_recipes", {})


@pytest.fixture
def entered() -> Iterator[None]:
    with without_data():
        yield


def metadata_of(x: Any) -> Any:
    """Return the metadata of a result: shape, strides, offset, dtype, device and storage size of each tensor."""
    if isinstance(x, list | tuple):
        return [metadata_of(part) for part in x]
    if not isinstance(x, Tensor):
        return x
    return x.shape, x.stride(), x.storage_offset(), x.dtype, x.device, x.untyped_storage().nbytes()


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "fresh": lambda x: x @ x.mT,
    "type promotion": lambda x: [x.to(torch.int32) * 2, x.to(torch.int32) * 2.0, x.bfloat16() + x],
    "view at an offset": lambda x: [x[1], x[2].t(), x[1:, 2], x[2].reshape(-1)],
    "view of another type": lambda x: x.view(torch.int16),
    "several views": lambda x: x[1].unbind(0),
    "several results": lambda x: [*torch.nn.functional.layer_norm(x, (4,)).split(2), *x.max(dim=0)],
    "in place": lambda x: x.add_(1).mul_(x).clamp_(min=0),
    "not in order": lambda x: torch.empty_like(x.mT),
    "result is given": lambda x: torch.add(x, 1, out=torch.empty_like(x)),
    "products": lambda x: [x[0] @ x[1], torch.addmm(x[0, 0], x[1].t(), x[2]), torch.bmm(x, x.mT)],
    "products with one row": lambda x: [x[0, :1] @ x[1], x[0].t() @ x[1, :, :1], torch.bmm(x[:1], x[1:2])],
    "elements of contiguous tensors": lambda x: [x + x.clone(), x[0] - x[1], x[1:2] / x[:1], x.mul(2), x * x[0]],
    "elements of transposed tensors": lambda x: [x.mT + x.mT.clone(), x.mT * x, x[:, :1].mT + x[:, 1:2].mT],
    "elements of two types": lambda x: [x + x.double(), x.int() + x.int(), x.int() / x.int(), x.bool() + x.bool()],
    "elements in place": lambda x: [x.clone().mul_(x[0]), x.int().bitwise_and_(7).bitwise_xor_(x.int())],
    "known value": lambda x: x * torch.tensor(3.0).item(),
}


@pytest.mark.parametrize("name", CALLS)
def test_repeated_calls_have_the_same_metadata_as_without_the_cache(name: str) -> None:
    call = CALLS[name]
    with FakeTensorMode():
        expected = metadata_of(call(torch.empty(3, 4, 4)))
    with without_data():
        assert [metadata_of(call(torch.empty(3, 4, 4))) for _ in range(3)] == [expected] * 3


@pytest.mark.usefixtures("entered")
def test_repeated_views_share_the_storage_of_their_own_argument() -> None:
    for _ in range(2):
        x = torch.empty(4, 6)
        for view in (x[1], x.reshape(-1), x.chunk(2)[1]):
            assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        for copy in (x.clone(), x.t().reshape(-1), x + 0):
            assert copy.untyped_storage()._cdata != x.untyped_storage()._cdata


@pytest.mark.usefixtures("entered")
def test_in_place_results_are_the_modified_argument() -> None:
    for _ in range(2):
        x, y, z = torch.empty(3), torch.empty(3), torch.empty(3)
        assert x.add_(y) is x
        assert torch.add(x, y, out=y) is y
        assert torch.add(x, y, out=z) is z


@pytest.mark.usefixtures("entered")
def test_equal_calls_do_not_reach_the_fake_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    real = FakeTensorMode.dispatch

    def dispatch(mode: FakeTensorMode, func: Any, *args: Any) -> Any:
        calls.append(func)
        return real(mode, func, *args)

    monkeypatch.setattr(FakeTensorMode, "dispatch", dispatch)
    torch.empty(5, 4).sigmoid()
    assert torch.ops.aten.sigmoid.default in calls
    calls.clear()
    result = torch.empty(5, 4).sigmoid()
    assert isinstance(result, FakeTensor)
    assert not calls


@pytest.mark.slow  # torch's own mode takes half a millisecond an operator
def test_bytes_of_a_step_on_a_gpu_equal_those_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a count for which no real step exists; for the others see `test_trace`."""
    config = config_of("hierarchical", seq_len=3, label_len=1, recompute="on")
    memory = trace.trace_memory(config, 3, torch.bfloat16, "cuda", "reference")
    monkeypatch.setattr(trace, "without_data", FakeTensorMode)
    assert trace.trace_memory(config, 3, torch.bfloat16, "cuda", "reference") == memory
