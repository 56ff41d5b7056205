"""Measurements. Results that are claimed anywhere lie in `results`, with the command that made them."""
