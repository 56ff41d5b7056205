"""Information on versions, hardware and backends agrees with the packages, the machine and the model."""

import importlib.metadata
import json
import os
import tomllib
from pathlib import Path

import psutil
import pytest
import torch

from pgat_fast.errors import BackendError
from pgat_fast.model import BACKENDS, backend_reasons, resolve_backend
from pgat_fast.utils import system


def test_collect_returns_plain_json_with_all_keys() -> None:
    info = json.loads(json.dumps(system.collect(), allow_nan=False))
    assert list(info) == ["versions", "optional", "system", "cpu", "memory", "cuda", "backends", "kernels"]
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert info["cpu"]["torch_capability"] == torch.backends.cpu.get_cpu_capability()
    assert info["cpu"]["threads"] == torch.get_num_threads()
    assert 1 <= info["cpu"]["usable_logical_cores"] <= (os.cpu_count() or 1)
    assert 0 < info["memory"]["available_gib"] < info["memory"]["total_gib"]
    assert len(info["cuda"]["devices"]) == torch.cuda.device_count()
    assert bool(info["cuda"]["devices"]) == (info["cuda"]["reason"] is None)


def test_backend_reasons_match_resolve_backend() -> None:
    backends = system.collect()["backends"]
    assert {"auto", *backends["available"]} == set(BACKENDS)
    for name, backend in backends["available"].items():
        if backend["runs"]:
            assert resolve_backend(name) == name
        else:
            with pytest.raises(BackendError, match=backend["reason"]):
                resolve_backend(name)
    assert backends["auto"] == resolve_backend("auto")
    assert backends["available"][backends["auto"]]["runs"]


def test_reference_backend_always_runs() -> None:
    assert backend_reasons()["reference"] is None


def test_auto_resolves_to_torch_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pgat_fast.model.backend_reasons", lambda: {"reference": None, "torch": None, "triton": "no GPU"}
    )
    assert resolve_backend("auto") == "torch"
    with pytest.raises(BackendError, match="'triton' cannot run here: no GPU"):
        resolve_backend("triton")


def test_missing_packages_are_listed_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("matplotlib", "triton"):
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(system.metadata, "version", version)
    info = system.collect()
    assert info["versions"]["triton"] is None
    assert info["versions"]["triton_absent"]
    assert info["optional"]["matplotlib"]["version"] is None
    text = system.format_info(info)
    assert 'not installed: pip install "pgat-fast[plots]" (for plots of a run, and its report)' in text
    assert info["versions"]["triton_absent"] in text


def test_suggested_extras_exist() -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, (extra, _) in system._OPTIONAL.items():
        assert any(requirement.startswith(f"{package}>") for requirement in extras[extra])


def test_text_names_machine_and_backends() -> None:
    info = system.collect()
    text = system.format_info(info)
    for part in ("versions", "optional packages", "machine", "GPUs", "backends", info["cpu"]["model"], "auto"):
        assert part in text
    assert f"uses {info['backends']['auto']}" in text


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_container_memory_limit_is_found(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    assert system.container_memory_limit(tmp_path) is None
    file.write_text("max\n")
    assert system.container_memory_limit(tmp_path) is None
    file.write_text(f"{2**30}\n")
    assert system.container_memory_limit(tmp_path) == 2**30
    file.write_text(f"{2**63 - 4096}\n")  # the value of version 1 without a limit
    assert system.container_memory_limit(tmp_path) is None
    file.write_text(f"{psutil.virtual_memory().total}\n")
    assert system.container_memory_limit(tmp_path) is None
