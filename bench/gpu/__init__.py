"""Kernels: measured and tuned on a GPU, or without one compiled offline and modelled."""
