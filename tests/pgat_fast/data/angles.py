"""Angles for the tests of positions."""

import numpy as np

from pgat_fast.data.astronomy import FloatArray, wrap180


def dms(degrees: float, minutes: float, seconds: float) -> float:
    """Return an angle in degrees."""
    return degrees + minutes / 60 + seconds / 3600


def arcseconds(difference: FloatArray | float) -> FloatArray:
    """Return a difference of angles in degrees as arcseconds, in [-648000, 648000)."""
    return wrap180(np.asarray(difference, dtype=np.float64)) * 3600
