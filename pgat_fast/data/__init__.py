"""Data: build, check and scale the data file, and cut it into windows on the training device."""
