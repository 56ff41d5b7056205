"""Triton kernels and what launches them. Imports triton, so nothing imports this package before a kernel is to run.

A module holds the kernels of one operator, which is the module of the same name one folder up: that one checks its
arguments, has the plain-torch twin, and decides which of the two runs.
"""
