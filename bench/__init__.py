"""Benchmarks. Every figure claimed anywhere is in `results`, with the command that produced it."""
