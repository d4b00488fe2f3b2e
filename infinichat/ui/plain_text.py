"""Text from people and models made harmless for a screen: control characters are shown, never obeyed.

An escape character becomes its picture (``\\x1b[31m`` is shown as ``␛[31m``), a C1 control or a character
that reverses the direction of text becomes its escape (``\\x9b``, ``\\u202e``). Tabs and line ends stay.
Every string that reaches a widget and was not written in this package goes through ``visible`` first; square
brackets need nothing, because no widget here is given markup."""

from __future__ import annotations

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


def one_line(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` characters, cut with an ellipsis."""
    # A long text is cut before it is cleaned: a document of a million characters costs nothing here.
    line = " ".join(visible(text[: width * 4 + 200]).split())
    return line if len(line) <= width else line[: max(0, width - 1)].rstrip() + "…"
