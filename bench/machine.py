"""Description of what a measurement was made on: machine, versions and code."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from pgat_fast.utils.cores import usable_cores
from pgat_fast.utils.system import GIB, cpu_fields, package_version

SETTINGS: Final = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_", "TORCH", "ONEDNN_",
)  # fmt: skip
"""Prefixes of environment variables that affect the speed of torch or the memory it takes."""


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, device, versions, code and time: what a reader needs to judge a figure."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_code(),
        "processor": _processor(),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(_memory() / GIB, 1),
        **_gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "c_library": " ".join(platform.libc_ver()),
        "environment": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(SETTINGS) and not name.endswith("_DIR")  # a location, which does not affect the speed
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": package_version("triton"),
    }


def _code() -> dict[str, Any]:
    """Return the commit of this code, and whether files differ from it; None each outside of a repository."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


def _gpu() -> dict[str, Any]:
    """Return name, power limit in watts, driver and CUDA version of the GPU that torch uses; each None without one."""
    description: dict[str, Any] = dict.fromkeys(("gpu", "gpu_power_limit_watts", "driver", "cuda"))
    if not torch.cuda.is_available():
        return description
    description |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["nvidia-smi", f"--id={uuid}", "--query-gpu=power.limit,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        limit, driver = (word.strip() for word in output.strip().split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return description  # no `nvidia-smi`, as on GPUs of other makers
    with suppress(ValueError):  # "[N/A]"
        description["gpu_power_limit_watts"] = float(limit)
    return description | {"driver": driver}


def _memory() -> int:
    """Return the bytes of memory of the machine; 0 if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return 0


def _processor() -> str:
    """Return the processor's name and model, and the vector instructions that decide its speed."""
    fields = cpu_fields()
    flags = fields.get("flags", "").split()
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    family = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]  # the name may be ambiguous
    return f"{fields['model name']} ({', '.join([*family, *vectors])})"
