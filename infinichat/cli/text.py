"""What the commands print in shapes of their own: aligned columns, and JSON that is exact and harmless.

What needs the exact bytes uses ``--json`` or ``export``: JSON writes the characters that a terminal would
obey as ``\\uXXXX``, where everything else is shown by ``text/harmless.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from infinichat.text.harmless import columns

_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def to_json(value: Any) -> str:
    """JSON that is exact and harmless to print: control characters and surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


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
