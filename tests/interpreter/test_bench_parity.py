"""Test that benchmarks refuse to time wrong kernels; `test_model` tests that they accept the right ones."""

import pytest

from bench import parity
from tests.bench.planting import plant

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("large_tiles", "tiny")]


def test_wrong_kernels_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "triton", "readout")
    with pytest.raises(parity.ParityError, match=r"the forecast by kernels is off by .*: nothing is timed that"):
        parity.require_parity("triton", "batched")
