"""Alt+Enter on terminals without the kitty keyboard protocol.

They send an escape and a carriage return for it, which Textual 8.2 takes for Enter, and Enter sends the
message instead of making a new line. Textual's table of sequences is not public; ``tests/ui`` notices when
it changes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ExtraKeys(StrEnum):
    """Key names that Textual's own table has no sequence for."""

    ALT_ENTER = "alt+enter"


def teach_alt_enter() -> None:
    """Make ``ESC CR`` and ``ESC LF`` the key "alt+enter". Doing it twice is fine."""
    from textual import _ansi_sequences

    table: Any = _ansi_sequences.ANSI_SEQUENCES_KEYS
    for sequence in ("\x1b\r", "\x1b\n"):
        table[sequence] = (ExtraKeys.ALT_ENTER,)
