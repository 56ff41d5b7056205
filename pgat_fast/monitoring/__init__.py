"""What a run tells of itself while it runs: speed, losses and memory, as JSON lines and for TensorBoard."""
