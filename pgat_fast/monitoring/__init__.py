"""Record speed, losses and memory of a run as JSON lines and for TensorBoard."""
