"""Closed-form astronomical formulas: mean node, Lahiri ayanamsa, obliquity, Ascendant, strength of exaltation.

Angles are in degrees, float64, of any shape. Instants are Julian Dates (JD) in Terrestrial Time (TT).
Meeus: Jean Meeus, Astronomical Algorithms, 2nd edition, Willmann-Bell 1998.
"""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ARCSECOND = 1 / 3600
"""One arcsecond in degrees."""

EXALTATION = {"Sun": 10, "Moon": 33, "Mars": 298, "Mercury": 165, "Jupiter": 95, "Venus": 357, "Saturn": 200}
"""Sidereal longitude of each body's deepest exaltation, in degrees (Brihat Parashara Hora Shastra)."""


def julian_centuries(jd_tt: FloatArray) -> FloatArray:
    """Return the Julian centuries of 36,525 days since J2000.0 (JD 2451545.0 TT)."""
    return (jd_tt - 2451545.0) / 36525


def wrap180(angle: FloatArray) -> FloatArray:
    """Return the same angle in [-180, 180)."""
    return (angle + 180) % 360 - 180


def mean_obliquity(jd_tt: FloatArray) -> FloatArray:
    """Return the mean obliquity of the ecliptic (Capitaine et al. 2003, A&A 412, 567, eq. 37 and 39; IAU 2006)."""
    T = julian_centuries(jd_tt)
    coefficients = (84381.406, -46.836769, -0.0001831, 0.00200340, -0.000000576, -0.0000000434)
    return _polynomial(T, coefficients) * ARCSECOND


def mean_node(jd_tt: FloatArray) -> FloatArray:
    """Return the longitude, in [0, 360), of the Moon's mean ascending node (Rahu) from the mean equinox of date.

    Meeus 47.7, after Chapront.
    """
    T = julian_centuries(jd_tt)
    return _polynomial(T, (125.0445479, -1934.1362891, 0.0020754, 1 / 467441, -1 / 60616000)) % 360


def lahiri_ayanamsa(jd_tt: FloatArray) -> FloatArray:
    """Return the Lahiri ayanamsa: the longitude from the MEAN equinox of date minus the sidereal longitude.

    The Indian Calendar Reform Committee's zero point (23 deg 15' 00.658" from the true equinox on 1956-03-21) is
    carried to J2000.0 by the IAU 1976 precession of its definition (as in the Swiss Ephemeris) and from there
    by the general precession in longitude of Capitaine et al. 2003 (A&A 412, 567).
    For a longitude from the true equinox, add the nutation in longitude to it: the sidereal longitude has none.
    """
    T = julian_centuries(jd_tt)
    return 23.857092 + _polynomial(T, (0, 5028.796195, 1.1054348)) * ARCSECOND


def ascendant(sidereal_time: FloatArray, obliquity: FloatArray, latitude: float) -> FloatArray:
    """Return the longitude, in [0, 360), of the rising point of the ecliptic (Meeus 14.2).

    `sidereal_time` is local, in degrees; `obliquity` is of the ecliptic; `latitude` is geographic and lies
    between the polar circles. With apparent sidereal time and true obliquity the result is measured from
    the true equinox of date.
    """
    theta, epsilon, phi = np.radians(sidereal_time), np.radians(obliquity), np.radians(latitude)
    # Meeus gives the tangent, which has two solutions; this choice of signs selects the rising one.
    y, x = np.cos(theta), -(np.sin(theta) * np.cos(epsilon) + np.tan(phi) * np.sin(epsilon))
    rising: FloatArray = np.degrees(np.arctan2(y, x)) % 360
    return rising


def uccha_bala(body: str, sidereal_longitude: FloatArray) -> FloatArray:
    """Return the strength of `body` (a key of `EXALTATION`) by its distance from deepest debilitation, 0 to 60.

    It is one component of shadbala, used as its proxy: a third of the angle, in degrees, between the body
    and the point opposite its exaltation (Brihat Parashara Hora Shastra, chapter on shadbala).
    """
    return np.abs(wrap180(sidereal_longitude - (EXALTATION[body] + 180))) / 3


def _polynomial(x: FloatArray, coefficients: tuple[float, ...]) -> FloatArray:
    """Evaluate the polynomial with `coefficients`, lowest power first, at `x` by Horner's rule."""
    value = np.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value
