"""Training: loss, learning rate, training loop, checkpoints and results of a run."""
