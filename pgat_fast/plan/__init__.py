"""What a run will take, without running it: parameters, FLOPs, memory, disk.

`make` puts a plan together out of `figures`, `trace` counts a step on tensors without data, `fake_cache` makes such
tensors quickly, `fake_ops` replaces operators there, `memory` turns the count into the memory of a run, `text` shows a
plan.
"""

from pgat_fast.plan.figures import Plan
from pgat_fast.plan.make import make_plan

__all__ = ["Plan", "make_plan"]
