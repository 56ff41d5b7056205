"""Operators on tensors: definition, plain-torch twin, autograd, FLOP formula."""
