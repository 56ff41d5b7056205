"""Training: loss, learning rate, the loop over epochs, what is written of a run."""
