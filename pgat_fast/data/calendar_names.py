"""Names of trading calendars: the values of `data.trading_days` and `--trading-days`."""

CALENDARS = ("nyse", "weekdays", "daily", "weekly", "monthly")
FULL_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAYS = tuple(name[:3] for name in FULL_NAMES)


def weekdays_of(calendar: str) -> tuple[str, ...]:
    """Return the weekdays that a name such as `Sun,Mon,Tue,Wed,Thu` lists, Monday first; none for another name."""
    names = calendar.replace(",", " ").lower().split()
    listed = tuple(
        day[:3] for day in FULL_NAMES if any(len(name) >= 3 and day.lower().startswith(name) for name in names)
    )
    return listed if len(listed) == len(names) else ()


def checked_name(calendar: str) -> str:
    """Return `calendar` if it is `auto`, one of `CALENDARS` or a list of weekdays, which is put in order.

    Raises ValueError for any other text.
    """
    listed = weekdays_of(calendar)
    if listed:
        return ",".join(listed)
    if calendar not in ("auto", *CALENDARS):
        raise ValueError(f"choose auto, {', '.join(CALENDARS)}, or weekdays such as Sun,Mon,Tue,Wed,Thu")
    return calendar
