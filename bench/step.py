"""Time and memory of whole training steps (forward, backward, clipping, Adam), each backend in a process of its own.

    python -m bench.step --config configs/production_batched.yaml --backends reference --batch 1 --steps 5 --json OUT

Inputs are random numbers of the configured shapes. The first step is a warm-up and is not counted.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.machine import GIB, describe
from pgat_fast import build_model, load_config
from pgat_fast.data.windows import Batch
from pgat_fast.device import resolve_device
from pgat_fast.files import write_json
from pgat_fast.training.precision import resolve_precision
from pgat_fast.training.step import OptimizerStep, make_optimizer


def measure(config_path: str, overrides: list[str], backend: str, batch: int, steps: int) -> dict[str, Any]:
    """Run `1 + steps` training steps in this process; seconds of each, and the peak memory above the start."""
    config = load_config(config_path, overrides)
    model_config = config.model
    device = resolve_device(config.run.device)
    torch.manual_seed(config.training.seed)
    baseline = peak_memory(device)
    model = build_model(config, backend=backend).to(device).train()
    settings = config.training.model_copy(update={"learning_rate": 1e-5})
    precision = resolve_precision(settings.mixed_precision, device)
    step = OptimizerStep(model, make_optimizer(model, settings), model_config, settings, precision, device)
    decoder_steps = model_config.label_len + model_config.pred_len
    inputs = Batch(
        torch.randn(batch, model_config.seq_len, model_config.enc_in, device=device),
        torch.rand(batch, model_config.seq_len, 4, device=device),
        torch.randn(batch, decoder_steps, model_config.dec_in, device=device),
        torch.rand(batch, decoder_steps, 4, device=device),
        torch.randn(batch, model_config.pred_len, model_config.c_out, device=device),
    )
    seconds = []
    for _ in range(1 + steps):
        synchronize(device)
        started = time.perf_counter()
        step.apply(step.accumulate([lambda: inputs]), 1)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    if step.flags.raised(wait=True):
        raise SystemExit("a step was not finite and thus left out: the timings mean nothing")
    counted = sorted(seconds[1:])
    quartiles = statistics.quantiles(counted, n=4, method="inclusive") if len(counted) > 1 else counted * 3
    return {
        "backend": backend,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "first_step_seconds": seconds[0],
        "step_seconds": {"quartile_1": quartiles[0], "median": quartiles[1], "quartile_3": quartiles[2]},
        "peak_memory_gib": (peak_memory(device) - baseline) / GIB,
        "baseline_memory_gib": baseline / GIB,
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak that the allocator reached on CUDA, the peak resident size of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--backends", default="reference", help="comma list")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(measure(args.config, args.overrides, args.backends, args.batch, args.steps)))
        return 0

    results = []
    for backend in args.backends.split(","):
        command = [sys.executable, "-m", "bench.step", "--in-this-process", "--config", args.config]
        command += ["--backends", backend, "--batch", str(args.batch), "--steps", str(args.steps)]
        command += ["--set", *args.overrides] if args.overrides else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
        step = results[-1]["step_seconds"]
        print(
            f"{backend}: {step['median']:.2f} s a step ({step['quartile_1']:.2f} to {step['quartile_3']:.2f}), "
            f"peak {results[-1]['peak_memory_gib']:.2f} GiB above {results[-1]['baseline_memory_gib']:.2f} GiB"
        )
    if args.json:
        shown = ["python", "-m", "bench.step", *sys.argv[1:]]
        write_json(
            args.json, {"command": " ".join(shown), "machine": describe(), "batch": args.batch, "results": results}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
