"""Lengths of time as people write them: 90s, 5m, 1h, 1h30m."""

from __future__ import annotations

import re

from diabolo.errors import UsageError

_FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)


def seconds(text: str) -> int:
    """The seconds of `90s`, `5m`, `1h` or `1h30m`.

    Raises:
        UsageError: for anything else, and for no time at all.
    """
    found = _FORM.fullmatch(text)
    hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + rest
    if not total:
        raise UsageError(
            f"the time {text!r} is refused",
            "A time is hours, minutes, seconds, in this order, each a whole number with its letter, and more than nothing.",
            "For example: 90s, 5m, 1h, 1h30m",
        )
    return total


def written(total: float) -> str:
    """Seconds as `seconds` reads them, rounded to whole ones where they are a second or more."""
    if total < 1:
        return f"{total:g}s"
    parts = zip((*divmod(round(total) // 60, 60), round(total) % 60), "hms")
    return "".join(f"{count}{letter}" for count, letter in parts if count)
