"""Evaluation of forecasts: metrics, naive baselines, intervals and diagnostics."""
