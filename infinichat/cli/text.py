"""Text for people: harmless on any terminal, aligned, with sizes and times they can read.

Model and user text may hold escape sequences; on stdout they are shown, never obeyed, and that holds for
pipes too, because a pipe often ends in a terminal. What needs the exact bytes uses ``--json`` or ``export``:
JSON writes the same characters as ``\\uXXXX``.
"""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Sequence
from typing import Any

# C0 (without tab and newline), DEL, C1, bidirectional overrides and lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # ESC becomes the visible sign for it
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def safe(text: str) -> str:
    """``text`` with all that a terminal would act on made visible; Windows line ends become newlines."""
    return _UNSAFE.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str, width: int = 80) -> str:
    """The beginning of ``text`` as one safe line of at most ``width`` columns."""
    flat = safe(" ".join(text.split()))
    if columns(flat) <= width:
        return flat
    while flat and columns(flat) > width - 1:
        flat = flat[:-1]
    return flat.rstrip() + "…"


def to_json(value: Any) -> str:
    """JSON that is exact and harmless to print: control characters and surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def columns(text: str) -> int:
    """How many terminal columns ``text`` takes."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if not unicodedata.combining(c))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Aligned columns with two blanks between; ``right`` lists the columns that are aligned to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(columns(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = []
        for i, cell in enumerate(row):
            gap = " " * (widths[i] - columns(cell))
            padded.append(gap + cell if i in right else cell + gap)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def size(count: float) -> str:
    """Bytes as people read them: 98,362,432 is "98.4 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def ago(then: float, *, now: float | None = None) -> str:
    """How long ago a moment (seconds since the epoch) was."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    for limit, divisor, unit in ((3600, 60, "minute"), (86400, 3600, "hour"), (30 * 86400, 86400, "day")):
        if seconds < limit:
            count = int(seconds // divisor)
            return "just now" if count == 0 else f"{count} {unit}{'s' * (count != 1)} ago"
    return time.strftime("%Y-%m-%d", time.localtime(then))


def counted(count: int, noun: str) -> str:
    """ "1 message", "1,204 messages"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
