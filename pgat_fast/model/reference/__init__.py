"""Reference model in plain PyTorch, one file for each section, written for clarity. It imports no optimised code."""
