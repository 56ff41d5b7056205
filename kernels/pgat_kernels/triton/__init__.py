"""Triton kernels and their launchers. The package imports triton, so it is only imported when a kernel runs.

Each module holds the kernels of one operator. The operator itself is defined in `pgat_kernels.ops`, which checks the
arguments, has the plain torch version, and decides which of the two runs.
"""
