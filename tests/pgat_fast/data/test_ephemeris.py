"""Celestial table: known events, ranges, time scale and invalid dates."""

import sys

import ephem
import numpy as np
import pandas as pd
import pytest
from skyfield.api import load

from pgat_fast.data.astronomy import FloatArray, lahiri_ayanamsa, mean_obliquity, uccha_bala, wrap180
from pgat_fast.data.bodies import PLANETS, SHADBALA
from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.ephemeris import LATITUDE, LONGITUDE, apparent_positions, instants, nutation, sky_table
from pgat_fast.errors import DataError

AU_KM = 149597870.7
ROUNDING = np.degrees(1e-8)
"""Largest error, in degrees, of an angle whose sine and cosine are rounded to 8 decimals: sqrt(2) / 2 * 1e-8, and more
for a pair that is not normalised."""


def days(*dates: str) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(dates)


def angle(table: pd.DataFrame, name: str) -> FloatArray:
    sine, cosine = table[f"{name}_sin"].to_numpy(), table[f"{name}_cos"].to_numpy()
    degrees: FloatArray = np.degrees(np.arctan2(sine, cosine)) % 360
    return degrees


def test_sun_enters_sidereal_aries_at_mesha_sankranti() -> None:
    # 2024-04-13 at 15:45 UT (Indian calendars): after 14:30 on that day.
    table = sky_table(days("2024-04-13", "2024-04-14"))
    before, after = angle(table, "dyn_Sun")
    assert 359.9 < before < 360
    assert 0 < after < 1
    assert table["dyn_Sun_sign_sin"].tolist() == [-0.5, 0.0]
    assert table["dyn_Sun_sign_cos"].tolist() == [0.75**0.5, 1.0]


def test_mercury_is_retrograde_between_stations() -> None:
    # Stations of 2024: April 1 at 22:14 UT and April 25 at 12:54 UT.
    table = sky_table(days("2024-04-01", "2024-04-02", "2024-04-13", "2024-04-24", "2024-04-25"))
    assert (table["dyn_Mercury_speed"] > 0).tolist() == [True, False, False, False, True]


def test_mean_node_is_always_retrograde_with_ketu_opposite() -> None:
    table = sky_table(pd.date_range("1900-01-01", "2050-01-01", freq="97D"))
    # 360 degrees in 18.61 years, less the precession.
    np.testing.assert_allclose(table["dyn_Mean Rahu_speed"], -360 / (18.6129 * 365.25) - 0.0000383, atol=1e-5)
    # Rounding of longitudes, 1e-13 degrees, over 1/12 day.
    np.testing.assert_allclose(table["dyn_Mean Ketu_speed"], table["dyn_Mean Rahu_speed"], rtol=0, atol=5e-12)
    opposite = angle(table, "dyn_Mean Ketu") - angle(table, "dyn_Mean Rahu")
    np.testing.assert_allclose(opposite % 360, 180, rtol=0, atol=2 * ROUNDING)


def test_tropical_and_sidereal_longitudes_differ_by_ayanamsa_and_nutation() -> None:
    dates = days("2000-01-01", "1950-06-01", "2040-12-31")
    jd, table = instants(dates), sky_table(dates)
    expected = lahiri_ayanamsa(jd) + nutation(jd)[0]
    # The ayanamsa at J2000.0, and at most 17.3" of nutation.
    assert abs(expected[0] - 23.857092) * 3600 < 20
    for body in (*PLANETS, "Mean Rahu", "Mean Ketu"):
        difference = angle(table, body) - angle(table, f"dyn_{body}")
        np.testing.assert_allclose(difference % 360, expected, rtol=0, atol=2 * ROUNDING)


def test_ascendant_is_on_the_eastern_horizon() -> None:
    dates = pd.date_range("1950-01-01", "2053-01-01", freq="97D")
    jd = instants(dates)
    observer = ephem.Observer()
    observer.lat, observer.lon = str(LATITUDE), str(LONGITUDE)
    sidereal = []
    for ut1 in load.timescale(builtin=True).tt_jd(jd).ut1:
        observer.date = ephem.Date(ut1 - 2415020.0)
        sidereal.append(float(observer.sidereal_time()))
    longitude = np.radians(angle(sky_table(dates), "Ascendant"))
    obliquity = np.radians(mean_obliquity(jd) + nutation(jd)[1])
    # A point of the ecliptic to equatorial, then to horizontal coordinates (Meeus 13.3, 13.4 and 13.6).
    right_ascension = np.arctan2(np.sin(longitude) * np.cos(obliquity), np.cos(longitude))
    declination = np.arcsin(np.sin(longitude) * np.sin(obliquity))
    hour_angle, phi = np.array(sidereal) - right_ascension, np.radians(LATITUDE)
    sine = np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle)
    # The sidereal time is PyEphem's, 0.12" from ours at worst.
    assert np.abs(np.degrees(np.arcsin(sine))).max() * 3600 < 0.2
    assert (np.sin(hour_angle) < 0).all()


def test_speed_of_planet_behind_sun_is_smooth() -> None:
    # Saturn passed 0.04 degrees from the Sun's centre on 1975-07-15: the plain deflection formula displaces
    # it by 10" and changes its speed by 0.035 degrees a day. Twice 1.75" over half a degree in half a day: 0.002.
    speed = sky_table(pd.date_range("1975-07-12", "1975-07-18"))["dyn_Saturn_speed"]
    assert np.ptp(speed) < 0.002


def test_speed_is_derivative_of_sidereal_longitude() -> None:
    dates = pd.date_range("1950-01-03", "2025-01-03", freq="211D")
    jd, hours3, table = instants(dates), 1 / 8, sky_table(dates)
    instants_around = [jd + k * hours3 for k in (-2, -1, 1, 2)]
    positions = [apparent_positions(instant) for instant in instants_around]
    for body in PLANETS:
        far_before, before, after, far_after = (
            position[body].longitude - lahiri_ayanamsa(instant)
            for position, instant in zip(positions, instants_around, strict=True)
        )
        # Five-point formula, error of order h^4; the two-point one's at one hour is 6e-5 for the Moon, and near
        # the Sun both are affected by the kink in the deflection at its limb.
        derivative = (8 * wrap180(after - before) - wrap180(far_after - far_before)) / (12 * hours3)
        np.testing.assert_allclose(table[f"dyn_{body}_speed"], derivative, rtol=0, atol=1e-4, err_msg=body)


def test_instants_are_1430_utc_and_1430_ut1_before_1972() -> None:
    jd = instants(days("2020-01-01", "1980-01-01", "1972-01-01", "1950-01-01"))
    seconds = (jd - np.array([2458849.5, 2444239.5, 2441317.5, 2433282.5]) - 14.5 / 24) * 86400
    # TT - UTC is 32.184 s and the leap seconds: 37, 19 and 10. A JD in float64 resolves 40 microseconds.
    np.testing.assert_allclose(seconds[:3], [69.184, 51.184, 42.184], rtol=0, atol=1e-4)
    # TT - UT at the beginning of 1950 is 29.1 s in Meeus, table 10.A; later reductions shifted it by 0.2 s.
    assert abs(seconds[3] - 29.1) < 0.3


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return sky_table(pd.date_range("1899-07-29", "2053-10-08", freq="61D"))


def test_columns_are_celestial_in_order(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == COLUMNS[5:]
    assert (table.dtypes == np.float64).all()
    assert np.isfinite(table.to_numpy()).all()


def test_values_are_within_ranges(table: pd.DataFrame) -> None:
    for name in (column.removesuffix("_sin") for column in table.columns if column.endswith("_sin")):
        np.testing.assert_allclose(np.hypot(table[f"{name}_sin"], table[f"{name}_cos"]), 1, rtol=0, atol=1e-8)
    shadbala = table.filter(like="shadbala")
    assert shadbala.min().min() >= 0
    assert shadbala.max().max() <= 60
    # Perihelion and aphelion of the Earth; perigee and apogee of the Moon, 356,400 to 406,720 km.
    assert table["dyn_Sun_distance"].between(0.983, 1.017).all()
    assert (table["dyn_Moon_distance"] * AU_KM).between(356300, 406800).all()
    # The largest ecliptic latitudes: 5.3 for the Moon, 17.2 heliocentric for Pluto, 1.2" for the Sun.
    assert table["dyn_Moon_lat"].abs().max() < 5.35
    assert table["dyn_Pluto_lat"].abs().max() < 18
    assert table["dyn_Sun_lat"].abs().max() * 3600 < 1.3


def test_sign_is_start_of_sidereal_sign(table: pd.DataFrame) -> None:
    for body in (*PLANETS, "Mean Rahu", "Mean Ketu"):
        # 0 to 30 degrees into the sign.
        offset = (angle(table, f"dyn_{body}") - angle(table, f"dyn_{body}_sign")) % 360
        assert offset.max() < 30
        assert len(np.unique(table[f"dyn_{body}_sign_sin"].to_numpy())) <= 7


def test_shadbala_is_uccha_bala_of_sidereal_longitude(table: pd.DataFrame) -> None:
    for body in SHADBALA:
        expected = uccha_bala(body, angle(table, f"dyn_{body}"))
        np.testing.assert_allclose(table[f"dyn_{body}_shadbala"], expected, rtol=0, atol=ROUNDING)


def test_rows_are_independent() -> None:
    dates = pd.date_range("2001-01-01", periods=50, freq="31D")
    all_rows, row = sky_table(dates), sky_table(dates[17:18])
    # Vector and scalar loops may round differently; the table is rounded far above that.
    assert np.array_equal(row.to_numpy()[0], all_rows.to_numpy()[17])


def test_first_and_last_day_of_ephemeris_are_supported() -> None:
    assert np.isfinite(sky_table(days("1899-07-29", "2053-10-08")).to_numpy()).all()


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (days("2000-01-03", "1899-07-28", "1890-01-01"), "1899-07-28.*1899-07-29 to 2053-10-08.*2 of 3"),
        (days("2053-10-08", "2053-10-09"), "2053-10-09.*1899-07-29 to 2053-10-08.*1 of 2"),
        (pd.DatetimeIndex(["2000-01-03", None]), "date 2 of 2 is missing"),
        (days(), "no dates"),
        (pd.DatetimeIndex(["2000-01-03"], tz="America/New_York"), "time zone America/New_York"),
    ],
)
def test_invalid_dates_raise(dates: pd.DatetimeIndex, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sky_table(dates)


def test_missing_package_suggests_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skyfield_data", None)
    with pytest.raises(DataError, match=r'skyfield_data: pip install "pgat-fast\[data\]"'):
        sky_table(days("2000-01-03"))
