"""Tensor operators, each with its plain torch version, backward pass and FLOP formula."""
