"""Collect and format installed versions, the hardware, and which backends and kernels run here."""

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pgat_fast import __version__
from pgat_fast.utils.cores import usable_cores
from pgat_fast.utils.table import format_columns

GIB = 2**30
"""Bytes of a GiB."""
_REQUIRED = ("numpy", "pandas", "pydantic", "safetensors", "pyyaml", "psutil", "tqdm")
_OPTIONAL = {
    "matplotlib": ("plots", "plots of a run, and its report"),
    "tensorboard": ("tensorboard", "run.tensorboard"),
    "skyfield": ("data", "`pgat-fast data build`, forecasts of days that the data file lacks"),
    "skyfield-data": ("data", "the ephemeris of `pgat-fast data build`"),
    "great-tables": ("data", "the S&P 500 prices of `pgat-fast data build`"),
}
"""Package -> the extra of pgat-fast that installs it, and its purpose."""
_CGROUP = Path("/sys/fs/cgroup")


def collect() -> dict[str, Any]:
    """Return `versions`, `optional`, `system`, `cpu`, `memory`, `cuda`, `backends` and `kernels` as plain JSON.

    Imports torch.
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


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, Any]:
    import torch

    versions: dict[str, Any] = {"pgat_fast": __version__, "python": platform.python_version()}
    versions["torch"] = str(torch.__version__)
    versions |= {package: package_version(package) for package in ("triton", *_REQUIRED)}
    if versions["triton"] is None:
        linux = sys.platform == "linux"
        versions["triton_absent"] = (
            "not installed; it is needed for kernels on a GPU" if linux else "triton is available for Linux only"
        )
    return versions


def _optional() -> dict[str, dict[str, str | None]]:
    return {
        package: {"version": package_version(package), "for": purpose, "install": f'pip install "pgat-fast[{extra}]"'}
        for package, (extra, purpose) in _OPTIONAL.items()
    }


def _cpu() -> dict[str, Any]:
    import psutil
    import torch

    flags = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_fp16", "sve", "bf16")
    capabilities = torch.cpu.get_capabilities()
    return {
        "model": cpu_fields()["model name"],
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_logical_cores": usable_cores(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": [flag for flag in flags if capabilities.get(flag)],
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
    }


def cpu_fields() -> dict[str, str]:
    """Return the fields of /proc/cpuinfo, such as `model name` and `flags`; where there is no such file, the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {"model name": platform.processor() or platform.machine() or "unknown", **fields}


def _memory() -> dict[str, float | None]:
    import psutil

    memory, container = psutil.virtual_memory(), container_memory_limit()
    return {
        "total_gib": memory.total / GIB,
        "available_gib": memory.available / GIB,
        "container_limit_gib": None if container is None else container / GIB,
    }


def container_memory_limit(root: Path = _CGROUP) -> int | None:
    """Return the memory limit of the container in bytes, None if there is none.

    Reads cgroup version 2 or 1, mounted at `root`. The system's memory statistics do not include this limit, and a
    process that exceeds it is killed.
    """
    import psutil

    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((root / file).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit < psutil.virtual_memory().total:  # version 1 reports a huge number without a limit
            return limit
    return None


def _cuda() -> dict[str, Any]:
    import torch

    # Annotated, because mypy takes the value of the installed build.
    built: str | None = torch.version.cuda
    if not torch.cuda.is_available():
        reason = "this build of torch has no CUDA" if built is None else "torch finds no GPU, or no driver for one"
        return {"built_for": built, "devices": [], "reason": reason}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "memory_gib": properties.total_memory / GIB,
                "compute_capability": f"{properties.major}.{properties.minor}",
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
    """Return, for each operator, its implementation with the backends `triton` and `auto` on this machine, and why."""
    from pgat_fast.model import backend_reasons
    from pgat_fast.utils.device import resolve_device
    from pgat_kernels.dispatch import COVERAGE, gpu_of, listed_rows

    unavailable, device = backend_reasons()["triton"], resolve_device("auto")
    rows = []
    for operator, takes in COVERAGE:
        reason = "no kernel yet" if takes is None else unavailable
        runs = reason is None and device.type == "cuda"
        auto = listed_rows(operator, gpu_of(device)) if runs else "plain torch"
        triton = "kernel" if reason is None else "plain torch"
        rows.append(
            {"operator": operator, "triton": triton, "auto": auto, "takes": takes or "-", "reason": reason or "-"}
        )
    return rows


def format_kernels(info: dict[str, Any]) -> str:
    """Return a table with the implementation of each operator, from the result of `collect`."""
    head = {"operator": "operator", "triton": "triton", "auto": "auto", "reason": "reason"}
    head |= {"takes": "accepted by its kernel"}
    table = format_columns([[row[key] for key in head] for row in (head, *info["kernels"])])
    return f"Implementation of each operator on this machine, by run.backend:\n\n{table}"


def format_info(info: dict[str, Any]) -> str:
    """Return the result of `collect` as text, in groups of lines."""
    cpu, memory, cuda, backends = info["cpu"], info["memory"], info["cuda"], info["backends"]
    versions = dict(info["versions"])
    absent = versions.pop("triton_absent", None)
    cores = "" if cpu["cores"] is None else f"{cpu['cores']} physical, "
    groups: dict[str, list[tuple[str, Any]]] = {
        "versions": [
            (name, version or (absent if name == "triton" else "not installed")) for name, version in versions.items()
        ],
        "optional packages": [
            (name, f"{package['version']} (for {package['for']})")
            if package["version"]
            else (name, f"not installed: {package['install']} (for {package['for']})")
            for name, package in info["optional"].items()
        ],
        "machine": [
            ("system", info["system"]),
            ("processor", cpu["model"]),
            ("cores", f"{cores}{cpu['logical_cores']} logical, {cpu['usable_logical_cores']} for this process"),
            ("torch uses", f"{cpu['torch_capability']}, {cpu['threads']} threads"),
            ("instruction sets", ", ".join(cpu["instruction_sets"]) or "none that torch detects"),
            ("oneDNN", "yes" if cpu["onednn"] else "no"),
            ("memory", f"{memory['total_gib']:.1f} GiB, {memory['available_gib']:.1f} GiB available"),
        ],
        "GPUs": [(device["device"], _gpu(device)) for device in cuda["devices"]] or [("none", cuda["reason"])],
        "backends": [
            *(
                (name, "runs here" if backend["runs"] else f"does not run: {backend['reason']}")
                for name, backend in backends["available"].items()
            ),
            ("auto", f"uses {backends['auto']}"),
        ],
    }
    if memory["container_limit_gib"] is not None:
        groups["machine"].append(("container limit", f"{memory['container_limit_gib']:.1f} GiB"))
    return "\n\n".join(
        f"{title}\n" + "\n".join(f"  {name:<22} {value}" for name, value in rows) for title, rows in groups.items()
    )


def _gpu(device: dict[str, Any]) -> str:
    bf16 = "yes" if device["bf16"] else "no"
    memory, capability = f"{device['memory_gib']:.1f} GiB", f"compute capability {device['compute_capability']}"
    return f"{device['name']}, {memory}, {capability}, bf16: {bf16}"
