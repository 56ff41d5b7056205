"""Sweeps: many runs over settings and seeds, on the devices of this machine or through any queue."""
