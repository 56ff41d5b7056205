"""Forecasts of the days to come, from a trained run and a file of prices."""
