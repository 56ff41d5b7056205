"""Half widths of conformal intervals are order statistics of the absolute errors."""

import numpy as np
import pytest

from pgat_fast.evaluation.intervals import half_widths, rank, windows_needed

LEVELS = (0.5, 0.8, 0.95)


def test_half_width_is_error_of_its_rank_for_each_day_and_target() -> None:
    errors = np.random.default_rng(0).permuted(np.arange(1.0, 20.0))  # nineteen windows
    signs = np.where(np.arange(19) % 2, 1.0, -1.0)
    both = np.stack([errors * signs, 10 * errors[::-1] * signs], axis=1)[:, None]  # [19, 1, 2]
    widths = half_widths(both, LEVELS)
    # ceil(20 * level): ranks 10, 16 and 19 of 19.
    for width, expected_rank in zip(widths, (10, 16, 19), strict=True):
        assert width is not None
        assert width.tolist() == [[expected_rank, 10 * expected_rank]]


def test_half_width_is_none_with_too_few_windows() -> None:
    is_finite = [width is not None for width in half_widths(np.ones((18, 2, 1)), LEVELS)]
    assert is_finite == [True, True, False]


def test_half_width_is_none_if_error_is_not_finite() -> None:
    errors = np.ones((9, 1, 2))
    errors[:3, 0, 1] = np.nan
    width_50, width_80, _ = half_widths(errors, LEVELS)
    assert width_50 is not None
    assert width_50.tolist() == [[1, 1]], "the 5th of 9 errors is known"
    assert width_80 is None, "the 8th is not"


@pytest.mark.parametrize(
    ("count", "level", "place"), [(19, 0.95, 19), (4, 0.8, 4), (41, 0.95, 40), (1, 0.5, 1), (199, 0.035, 7)]
)
def test_rank_of_known_cases(count: int, level: float, place: int) -> None:
    assert rank(count, level) == place


def test_windows_needed_is_smallest_sufficient_number() -> None:
    for level in np.arange(1, 1000) / 1000:
        needed = windows_needed(level)
        assert needed >= 1
        assert rank(needed, level) <= needed
        assert rank(needed - 1, level) > needed - 1


def test_exchangeable_errors_are_covered_at_nominal_level() -> None:
    errors = np.random.default_rng(5).standard_t(3, size=(40, 5000, 1))  # 5,000 repetitions of 39 windows and one more
    for level in LEVELS:
        (width,) = half_widths(errors[:39], [level])
        assert width is not None
        share = float(np.mean(np.abs(errors[39]) <= width))
        # The expectation is exactly ceil(40 * level) / 40 = level; four standard errors of 5,000 repetitions.
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 5000))
