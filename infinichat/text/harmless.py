"""Text from people and models made harmless for a screen: control characters are shown, never obeyed.

An escape character becomes its picture (``\\x1b[31m`` is shown as ``␛[31m``); a C1 control, a character that
reverses the direction of text or a lone surrogate becomes its escape (``\\x9b``, ``\\u202e``). Tabs and line
ends stay. The app and the commands print nothing that was not written in this package without it, in pipes
too, because a pipe often ends in a terminal. Square brackets need nothing: no widget here is given markup.
"""

from __future__ import annotations

import unicodedata

# Overrides, embeddings and isolates; the plain marks U+200E and U+200F are needed in honest Arabic and
# Hebrew.
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_SEPARATORS = (0x2028, 0x2029)

_PICTURES: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: "\u2421",
    **{code: f"\\x{code:02x}" for code in range(0x80, 0xA0)},
    **{code: f"\\u{code:04x}" for code in (*_BIDI, *_LINE_SEPARATORS)},
    **{code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)},
}


def visible(text: str) -> str:
    """``text`` with every control character shown. Windows line ends become plain ones.

    >>> visible("a\\x1b[1mb\\r\\n")
    'a␛[1mb\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return text.replace("\r\n", "\n").translate(_PICTURES)


def columns(text: str) -> int:
    """How many terminal columns ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if not unicodedata.combining(c))


def one_line(text: str, width: int = 80) -> str:
    """The beginning of ``text`` as one harmless line of at most ``width`` columns, cut with an ellipsis."""
    # A long text is cut before it is cleaned: a document of a million characters costs nothing here.
    line = " ".join(visible(text[: width * 4 + 200]).split())
    if columns(line) <= width:
        return line
    line = line[: max(0, width - 1)]
    while line and columns(line) > width - 1:
        line = line[:-1]
    return line.rstrip() + "…"
