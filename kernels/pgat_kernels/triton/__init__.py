"""Triton kernels and their launchers. The package imports triton, so it is only imported when a kernel runs.

Each kernel module belongs to one operator of `pgat_kernels.ops`, which checks the arguments, has the plain torch
version, and decides which of the two runs. `tiles`, `dropout` and `launch` are shared.
"""
