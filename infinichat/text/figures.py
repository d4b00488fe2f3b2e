"""Numbers as people read them: counts, sizes, times, bars. Pure functions.

>>> tokens(1_234_567), size(98_362_432), duration(75), bar(0.5, 4)
('1.23M', '98.4 MB', '1 min 15 s', '▰▰▱▱')
"""

from __future__ import annotations

import time


def tokens(count: int) -> str:
    """A count of tokens in at most five characters: 812, 12.4k, 1.02M."""
    for limit, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= limit:
            value = count / limit
            digits = 2 if value < 10 and unit != "k" else 1 if value < 100 else 0
            return f"{value:.{digits}f}{unit}"
    return str(count)


def size(count: float) -> str:
    """Bytes in decimal units: 98,362,432 is "98.4 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def ago(then: float, *, now: float | None = None, short: bool = False) -> str:
    """How long before ``now`` a moment was, both in seconds since the epoch; a date after a month.

    "2 hours ago", or "2 h ago" when ``short``.
    """
    seconds = max(0.0, (time.time() if now is None else now) - then)
    units = ((3600, 60, "minute", "min"), (86400, 3600, "hour", "h"), (30 * 86400, 86400, "day", "d"))
    for limit, divisor, long, brief in units:
        if seconds < limit:
            count = int(seconds // divisor)
            if count == 0:
                return "just now"
            return f"{count} {brief} ago" if short else f"{counted(count, long)} ago"
    return time.strftime("%Y-%m-%d", time.localtime(then))


def percent(fraction: float) -> str:
    """0..1 as a whole percentage; anything above nothing is at least "1 %", below all at most "99 %"."""
    shown = round(100 * fraction)
    if 0 < fraction < 1:
        shown = min(99, max(1, shown))
    return f"{shown} %"


def bar(fraction: float, width: int) -> str:
    """A gauge of ``width`` cells. It is full only at 1 and empty only at 0, so that the ends mean
    something."""
    filled = round(min(1.0, max(0.0, fraction)) * width)
    if 0 < fraction < 1:
        filled = min(width - 1, max(1, filled))
    return "▰" * filled + "▱" * (width - filled)


def counted(count: int, noun: str) -> str:
    """ "1 message", "1,204 messages"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
