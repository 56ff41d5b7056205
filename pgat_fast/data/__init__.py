"""From prices and the sky to batches on the training device: build, check, scale, window."""
