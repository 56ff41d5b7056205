"""The model in plain PyTorch, one file a section: clarity over speed. It imports no optimised path."""
