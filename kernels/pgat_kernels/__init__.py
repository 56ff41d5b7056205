"""Operators on tensors for graph forecasters. They know nothing of `pgat_fast`."""
