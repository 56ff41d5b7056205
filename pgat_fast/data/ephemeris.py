"""Celestial columns of the data file: positions of the ten bodies, the lunar nodes and the Ascendant.

One row a day, for 14:30 UTC (before 1972, when UTC had no leap seconds and followed the Earth, 14:30 UT1) at
the New York Stock Exchange, 40.7069 N 74.0113 W. The place affects the Ascendant only: everything else is
geocentric. Needs `skyfield` and `skyfield-data`, whose wheel contains the JPL ephemeris DE421; no network.

Values depend on the versions of these two packages (the difference between TT and UT1 is a measured quantity
and is predicted for future days). They do not depend on the number of threads: nothing here calls BLAS, which
divides its sums among threads. Nor do they depend on the processor, although numpy and the C library choose
implementations of sines and arc tangents by its instruction set, and these differ in the last bit: values are
rounded to decimals that are far above these differences (`PAIR_DECIMALS`).
"""

from datetime import date
from importlib.resources import as_file, files
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pgat_fast.data.astronomy import (
    ARCSECOND,
    FloatArray,
    ascendant,
    julian_centuries,
    lahiri_ayanamsa,
    mean_node,
    mean_obliquity,
    uccha_bala,
    wrap180,
)
from pgat_fast.data.bodies import ASCENDANT, NODES, PLANETS, SHADBALA
from pgat_fast.data.columns import COLUMNS
from pgat_fast.errors import DataError

LATITUDE, LONGITUDE = 40.7069, -74.0113
"""Place of the observer, in degrees north and east."""

FIRST_DATE, LAST_DATE = date(1899, 7, 29), date(2053, 10, 8)
"""The first and last day whose 14:30 UTC lies in DE421 (1899-07-29 0 h to 2053-10-09 0 h TDB)."""

CELESTIAL = COLUMNS[5:]
"""Names of the columns of `sky_table`, in order."""

PAIR_DECIMALS, DISTANCE_DECIMALS, DEGREE_DECIMALS, SPEED_DECIMALS = 8, 8, 7, 6
"""Decimals of sines and cosines (0.002 arcseconds), of distances (1.5 km), of latitudes (0.0004 arcseconds) and
shadbala, and of the speeds of planets, in degrees a day.

All are below the errors of the ephemeris (0.1 arcseconds) and of the central difference (6e-5 degrees a day). If
implementations of sin, cos and arctan2 differ by a unit in the last place, sines, degrees and speeds differ by 8e-17,
3e-15 and 1e-13 on average. Two such values round differently if a rounding boundary lies between them, with the
probability of their difference over the rounding step: 0.04 times in the 1.4 million values of 16,606 rows, if three
in ten results of these functions differ; below 1e-4 times for the variants of glibc with and without FMA. Signs, and
the speeds of the nodes, whose drift is 2e-8 degrees a day, come from elementwise arithmetic, which is the same
everywhere: they are not rounded.
"""

_HOUR = 1 / 24
_SUN_RADIUS = 959.63 * ARCSECOND  # seen from 1 au (Auwers)

# Number of each body in the ephemeris; for the giant planets and Pluto, of the barycentre of their system.
_KERNEL_IDS = {
    "Sun": 10, "Moon": 301, "Mars": 499, "Mercury": 199, "Jupiter": 5, "Venus": 299, "Saturn": 6, "Uranus": 7,
    "Neptune": 8, "Pluto": 9,
}  # fmt: skip

# Sine and cosine of 0, 30, ... 330 degrees, exact where they are zero: np.sin(np.pi) is 1.2e-16.
_SIGN_SIN = np.array([0, 0.5, 0.75**0.5, 1, 0.75**0.5, 0.5, 0, -0.5, -(0.75**0.5), -1, -(0.75**0.5), -0.5])
_SIGN_COS = np.roll(_SIGN_SIN, -3)


class EclipticPosition(NamedTuple):
    """Apparent geocentric position; each array is float64 of shape (n,)."""

    longitude: FloatArray
    """Degrees from the MEAN equinox of date; add the nutation in longitude for the true one."""
    latitude: FloatArray
    """Degrees north of the ecliptic of date."""
    distance: FloatArray
    """Astronomical units, from the Earth at the given instant to the body when the light left it."""


def sky_table(dates: pd.DatetimeIndex) -> pd.DataFrame:
    """Return the 113 celestial columns (`CELESTIAL`), float64, one row for each of `dates`, which are the index.

    - `dyn_{B}_sin`, `_cos`: of the sidereal (Lahiri) longitude; `{B}_sin`, `_cos`: of the tropical longitude
      (true equinox of date).
    - `speed`: of the sidereal longitude, degrees a day: central difference over one hour either side
      (skyfield's own rates leave out the change of aberration: up to 0.0014 degrees a day).
    - `sign_sin`, `sign_cos`: of the start of the sidereal sign, 30 * floor(longitude / 30) degrees.
    - `distance`: astronomical units. `lat`: ecliptic latitude, degrees. `shadbala`: see `uccha_bala`.

    Values are rounded: see `PAIR_DECIMALS`.

    Raises `DataError` for a date outside DE421 (`FIRST_DATE` to `LAST_DATE`), a missing date, a date with a
    time zone, no dates at all, and when skyfield or skyfield-data is not installed.
    """
    _check_dates(dates)
    _check_installed()
    jd_tt = instants(dates)
    nutation_in_longitude, nutation_in_obliquity = nutation(jd_tt)
    obliquity = mean_obliquity(jd_tt) + nutation_in_obliquity
    ayanamsa = lahiri_ayanamsa(jd_tt)
    positions = apparent_positions(jd_tt)
    speeds = _sidereal_speeds(jd_tt)

    columns: dict[str, FloatArray] = {}
    for body, longitude in _with_nodes(positions, jd_tt).items():
        sidereal = (longitude - ayanamsa) % 360
        sign = np.floor(sidereal / 30).astype(np.intp) % 12
        columns |= _angle_pair(f"dyn_{body}", sidereal) | _angle_pair(body, longitude + nutation_in_longitude)
        columns |= {f"dyn_{body}_sign_sin": _SIGN_SIN[sign], f"dyn_{body}_sign_cos": _SIGN_COS[sign]}
        columns[f"dyn_{body}_speed"] = speeds[body]
        if body in positions:
            columns[f"dyn_{body}_speed"] = np.round(speeds[body], SPEED_DECIMALS)
            columns[f"dyn_{body}_distance"] = np.round(positions[body].distance, DISTANCE_DECIMALS)
            columns[f"dyn_{body}_lat"] = np.round(positions[body].latitude, DEGREE_DECIMALS)
        if body in SHADBALA:
            columns[f"dyn_{body}_shadbala"] = np.round(uccha_bala(body, sidereal), DEGREE_DECIMALS)
    local_sidereal_time = greenwich_sidereal_time(jd_tt, nutation_in_longitude, obliquity) + LONGITUDE
    columns |= _angle_pair(ASCENDANT, ascendant(local_sidereal_time, obliquity, LATITUDE))
    return pd.DataFrame({name: columns[name] for name in CELESTIAL}, index=dates)


def instants(dates: pd.DatetimeIndex) -> FloatArray:
    """Return the Julian Date, in TT, of 14:30 UTC (before 1972: UT1) of each day; shape (n,)."""
    from skyfield.api import load

    timescale = load.timescale(builtin=True)
    year, month, day = (np.asarray(part) for part in (dates.year, dates.month, dates.day))
    universal = timescale.ut1(year, month, day, 14, 30)
    coordinated = timescale.utc(year, month, day, 14, 30)
    jd_tt: FloatArray = np.where(year < 1972, universal.tt, coordinated.tt)
    return jd_tt


def apparent_positions(jd_tt: FloatArray) -> dict[str, EclipticPosition]:
    """Return the apparent geocentric positions of `PLANETS` at instants of shape (n,), JD in TT within DE421.

    They include light time, aberration and the Sun's deflection of light (skyfield, after NOVAS), then precession
    (IAU 2006). Within the Sun's disc the deflection, which grows as 1/angle, is reduced linearly to
    zero: the body cannot be observed there, and the plain formula would displace it by up to 10 arcseconds and
    change its speed by a quarter. The deflection by Jupiter and Saturn, below 0.02 arcseconds, is left out.
    """
    from skyfield.api import load, load_file
    from skyfield.framelib import mean_equator_and_equinox_of_date

    time = load.timescale(builtin=True).tt_jd(jd_tt)
    obliquity = np.radians(mean_obliquity(jd_tt))
    positions = {}
    with as_file(files("skyfield_data") / "data" / "de421.bsp") as path:
        kernel = load_file(str(path))
        try:
            earth = kernel["earth"].at(time)
            sun = _straight_line(earth.observe(kernel["sun"]))
            for body in PLANETS:
                observed = earth.observe(kernel[_KERNEL_IDS[body]])
                undeflected = _straight_line(observed)
                deflected = observed.apparent(deflectors=(10,))
                solar_radii = undeflected.separation_from(sun).degrees * sun.distance().au / _SUN_RADIUS
                undeflected_xyz = undeflected.frame_xyz(mean_equator_and_equinox_of_date).au
                shift = deflected.frame_xyz(mean_equator_and_equinox_of_date).au - undeflected_xyz
                direction = undeflected_xyz + shift * np.minimum(1, solar_radii**2)
                positions[body] = EclipticPosition(*_to_ecliptic(direction, obliquity), observed.distance().au)
        finally:
            kernel.close()
    return positions


def nutation(jd_tt: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the nutation in longitude and in obliquity, degrees, each of shape (n,).

    IAU 2000B (McCarthy and Luzum 2003, Celest. Mech. 85, 37): within 0.003 arcseconds of the full IAU 2000A
    over the whole of DE421. The terms of skyfield's tables are summed one by one: skyfield's own sum is a matrix
    product in BLAS, whose rounding may change with the number of threads.
    """
    from skyfield import nutationlib as tables

    T = julian_centuries(jd_tt)
    fundamental_arguments = tables.fundamental_arguments(T, 2)
    # In units of 0.1 microarcseconds; the constants stand for the planetary terms.
    longitude, obliquity = np.full_like(T, -0.000135e7), np.full_like(T, 0.000388e7)
    for multipliers, (sine, sine_T, cosine), (cosine_e, cosine_T_e, sine_e) in zip(
        tables.nals_t[:77],
        tables.lunisolar_longitude_coefficients[:77],
        tables.lunisolar_obliquity_coefficients[:77],
        strict=True,
    ):
        argument = sum(k * angle for k, angle in zip(multipliers, fundamental_arguments, strict=True))
        sin, cos = np.sin(argument), np.cos(argument)
        longitude += (sine + sine_T * T) * sin + cosine * cos
        obliquity += (cosine_e + cosine_T_e * T) * cos + sine_e * sin
    return longitude * (1e-7 * ARCSECOND), obliquity * (1e-7 * ARCSECOND)


def greenwich_sidereal_time(jd_tt: FloatArray, nutation_in_longitude: FloatArray, obliquity: FloatArray) -> FloatArray:
    """Return Greenwich apparent sidereal time, degrees, shape (n,); mean sidereal time if the nutation is zero.

    Computed from the Earth Rotation Angle (IAU 2006) and the equation of the equinoxes as in Meeus chapter 12.
    Its later terms, below 0.003 arcseconds, are left out.
    """
    from skyfield.api import load

    mean = load.timescale(builtin=True).tt_jd(jd_tt).gmst * 15
    apparent: FloatArray = mean + nutation_in_longitude * np.cos(np.radians(obliquity))
    return apparent


def _sidereal_speeds(jd_tt: FloatArray) -> dict[str, FloatArray]:
    """Return the speed of the sidereal longitude of `PLANETS` and `NODES`, degrees a day, by central difference."""
    early, late = jd_tt - _HOUR, jd_tt + _HOUR
    start, end = (_with_nodes(apparent_positions(jd), jd) for jd in (early, late))
    precession = lahiri_ayanamsa(late) - lahiri_ayanamsa(early)
    # Divide by the actual step: a JD in float64 is accurate to 40 microseconds only.
    return {body: (wrap180(end[body] - start[body]) - precession) / (late - early) for body in start}


def _with_nodes(positions: dict[str, EclipticPosition], jd_tt: FloatArray) -> dict[str, FloatArray]:
    """Return the longitudes of `PLANETS` and `NODES` from the mean equinox of date."""
    rahu, ketu = NODES
    longitudes = {body: position.longitude for body, position in positions.items()}
    return longitudes | {rahu: mean_node(jd_tt), ketu: mean_node(jd_tt) + 180}


def _straight_line(observed: Any) -> Any:
    """Return the apparent position with light time and aberration but no deflection."""
    return observed.apparent(deflectors=())


def _to_ecliptic(equatorial: FloatArray, obliquity: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the longitude and latitude in degrees of directions (3, n); `obliquity` in radians (Meeus chapter 13)."""
    x, y, z = equatorial
    y, z = y * np.cos(obliquity) + z * np.sin(obliquity), z * np.cos(obliquity) - y * np.sin(obliquity)
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _angle_pair(name: str, degrees: FloatArray) -> dict[str, FloatArray]:
    """Return the columns of the sine and the cosine of an angle, rounded."""
    pair: dict[str, Any] = {"sin": np.sin(np.radians(degrees)), "cos": np.cos(np.radians(degrees))}
    return {f"{name}_{function}": values.round(PAIR_DECIMALS) for function, values in pair.items()}


def _check_dates(dates: pd.DatetimeIndex) -> None:
    if dates.empty:
        raise DataError("no dates to compute positions for")
    if dates.tz is not None:
        raise DataError(f"the dates have the time zone {dates.tz}: pass calendar days without one")
    if dates.hasnans:
        raise DataError(f"date {int(np.argmax(dates.isna())) + 1} of {len(dates)} is missing")
    outside = (dates < pd.Timestamp(FIRST_DATE)) | (dates >= pd.Timestamp(LAST_DATE) + pd.Timedelta(days=1))
    if outside.any():
        raise DataError(
            f"{dates[outside][0]:%Y-%m-%d} lies outside the ephemeris DE421, which covers {FIRST_DATE} to "
            f"{LAST_DATE} ({int(outside.sum())} of {len(dates)} dates are outside): leave those rows out"
        )


def _check_installed() -> None:
    missing = [name for name in ("skyfield", "skyfield_data") if find_spec(name) is None]
    if missing:
        raise DataError(f'the celestial columns need {" and ".join(missing)}: pip install "pgat-fast[data]"')
