"""Forecasts of future trading days from a trained run and a file of prices."""
