"""Plots and an HTML page of a run, made from the files in its folder."""
