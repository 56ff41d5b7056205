"""Utilities shared by all packages: files, text tables, devices and the machine."""
