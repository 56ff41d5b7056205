"""Data-parallel training: the environment of a rank, the process group, the launcher."""
