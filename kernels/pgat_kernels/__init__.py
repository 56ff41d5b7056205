"""Tensor operators and kernels for graph forecasters. The package does not depend on `pgat_fast`."""
