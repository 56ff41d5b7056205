"""What is installed, what this machine has, and which backends can run here."""

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from pgat_fast import __version__
from pgat_fast.columns_of_text import in_columns
from pgat_fast.cores import usable_cores

GIB = 2**30
_REQUIRED = ("numpy", "pandas", "pydantic", "safetensors", "pyyaml", "psutil", "tqdm")
_OPTIONAL = {
    "matplotlib": ("plots", "plots of a run, and its report"),
    "tensorboard": ("tensorboard", "run.tensorboard"),
    "skyfield": ("data", "`pgat-fast data build`, forecasts of days that the data file lacks"),
    "skyfield-data": ("data", "the ephemeris of `pgat-fast data build`"),
    "great-tables": ("data", "the S&P 500 prices of `pgat-fast data build`"),
}
"""Package -> the extra of pgat-fast that installs it, what it is for."""
_CGROUP = Path("/sys/fs/cgroup")


def collect() -> dict[str, Any]:
    """Everything as plain JSON: `versions`, `optional`, `system`, `cpu`, `memory`, `cuda`, `backends`, `kernels`.

    Loads torch.
    """
    return {
        "versions": _versions(),
        "optional": _optional(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "memory": _memory(),
        "cuda": _cuda(),
        "backends": _backends(),
        "kernels": _kernels(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, Any]:
    import torch

    versions: dict[str, Any] = {
        "pgat_fast": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
    }
    if versions["triton"] is None:
        versions["triton_absent"] = _triton_absent()
    return versions | {package: _version(package) for package in _REQUIRED}


def _triton_absent() -> str:
    """Why there is no triton."""
    if sys.platform != "linux":
        return "triton is made for Linux only"
    return "not installed; it is needed for kernels on a GPU, and this version has none"


def _optional() -> dict[str, dict[str, str | None]]:
    return {
        package: {"version": _version(package), "for": purpose, "install": f'pip install "pgat-fast[{extra}]"'}
        for package, (extra, purpose) in _OPTIONAL.items()
    }


def _cpu() -> dict[str, Any]:
    import torch

    flags = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_fp16", "sve", "bf16")
    known = torch.cpu.get_capabilities()
    return {
        "model": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_logical_cores": usable_cores(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": [flag for flag in flags if known.get(flag)],
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> dict[str, float | None]:
    memory, container = psutil.virtual_memory(), container_memory_limit()
    return {
        "total_gib": memory.total / GIB,
        "available_gib": memory.available / GIB,
        "container_limit_gib": None if container is None else container / GIB,
    }


def container_memory_limit(root: Path = _CGROUP) -> int | None:
    """Bytes that the container may use (cgroup version 2 or 1, mounted at `root`); None where there is no bound.

    The system's own figures do not show it, and a process that goes beyond it is killed.
    """
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((root / file).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < psutil.virtual_memory().total:  # version 1 tells a huge number where there is none
            return limit
    return None


def _cuda() -> dict[str, Any]:
    import torch

    # mypy knows only that of the build it reads.
    built: str | None = torch.version.cuda
    if not torch.cuda.is_available():
        reason = "this build of torch has no CUDA" if built is None else "torch finds no GPU, or no driver for one"
        return {"built_for": built, "devices": [], "reason": reason}
    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": found.name,
                "memory_gib": found.total_memory / GIB,
                "compute_capability": f"{found.major}.{found.minor}",
                "bf16": bf16,
            }
        )
    return {"built_for": built, "devices": devices, "reason": None}


def _backends() -> dict[str, Any]:
    from pgat_fast.model import backend_reasons, resolve_backend

    return {
        "available": {name: {"runs": reason is None, "reason": reason} for name, reason in backend_reasons().items()},
        "auto": resolve_backend("auto"),
    }


def _kernels() -> list[dict[str, str]]:
    """Of every operator: what the backends `triton` and `auto` compute it by on this machine, and why."""
    from pgat_fast.device import resolve_device
    from pgat_fast.model import backend_reasons
    from pgat_kernels.dispatch import COVERAGE, gpu_of, measured_rows

    here, device = backend_reasons()["triton"], resolve_device("auto")
    found = []
    for operator, takes in COVERAGE:
        reason = "no kernel yet" if takes is None else here
        measured = reason is None and device.type == "cuda"
        auto = measured_rows(operator, gpu_of(device)) if measured else "plain torch"
        by = "kernel" if reason is None else "plain torch"
        found.append({"operator": operator, "triton": by, "auto": auto, "takes": takes or "-", "reason": reason or "-"})
    return found


def kernels_as_text(info: dict[str, Any]) -> str:
    """The operators with a kernel or without, a line each."""
    head = {"operator": "operator", "triton": "with triton", "auto": "with auto", "reason": "why"}
    head |= {"takes": "a kernel takes"}
    table = in_columns([[row[key] for key in head] for row in (head, *info["kernels"])])
    return f"By what operators are computed on this machine, with run.backend=triton and auto:\n\n{table}"


def as_text(info: dict[str, Any]) -> str:
    """What `collect` gave, a line each, in groups."""
    cpu, memory, cuda, backends = info["cpu"], info["memory"], info["cuda"], info["backends"]
    versions = dict(info["versions"])
    absent = versions.pop("triton_absent", None)
    groups: dict[str, list[tuple[str, Any]]] = {
        "versions": [
            (name, version or (absent if name == "triton" else "not installed")) for name, version in versions.items()
        ],
        "optional packages": [
            (name, f"{found['version']} (for {found['for']})")
            if found["version"]
            else (name, f"not installed: {found['install']} (for {found['for']})")
            for name, found in info["optional"].items()
        ],
        "machine": [
            ("system", info["system"]),
            ("processor", cpu["model"]),
            ("cores", _cores(cpu)),
            ("torch uses", f"{cpu['torch_capability']}, {cpu['threads']} threads"),
            ("instruction sets", ", ".join(cpu["instruction_sets"]) or "none of those that torch asks for"),
            ("oneDNN", "yes" if cpu["onednn"] else "no"),
            ("memory", f"{memory['total_gib']:.1f} GiB, {memory['available_gib']:.1f} GiB available"),
        ],
        "GPUs": [
            (
                device["device"],
                f"{device['name']}, {device['memory_gib']:.1f} GiB, compute capability {device['compute_capability']}, "
                f"bf16: {'yes' if device['bf16'] else 'no'}",
            )
            for device in cuda["devices"]
        ]
        or [("none", cuda["reason"])],
        "backends": [
            *(
                (name, "can run here" if found["runs"] else f"cannot run: {found['reason']}")
                for name, found in backends["available"].items()
            ),
            ("auto", f"takes {backends['auto']}"),
        ],
    }
    if memory["container_limit_gib"] is not None:
        groups["machine"].append(("limit of the container", f"{memory['container_limit_gib']:.1f} GiB"))
    return "\n\n".join(
        f"{title}\n" + "\n".join(f"  {name:<22} {value}" for name, value in rows) for title, rows in groups.items()
    )


def _cores(cpu: dict[str, Any]) -> str:
    physical = "" if cpu["cores"] is None else f"{cpu['cores']} physical, "
    return f"{physical}{cpu['logical_cores']} logical, {cpu['usable_logical_cores']} for this process"
