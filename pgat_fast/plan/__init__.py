"""Resources of a run, predicted without running it: parameters, FLOPs, memory, disk.

`make` builds a plan from the classes in `figures`. `trace` counts a step on fake tensors (tensors without data),
`fake_cache` caches the results of operators on them, and `fake_ops` replaces some operators. `memory` converts the
count to the memory of a run, `text` formats a plan.
"""

from pgat_fast.plan.figures import Plan
from pgat_fast.plan.make import make_plan

__all__ = ["Plan", "make_plan"]
