"""Data-parallel training: environment of a rank, process group and launcher."""
