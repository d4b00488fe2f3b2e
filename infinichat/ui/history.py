"""What was typed before, newest last, in a JSON-lines file that every session shares.

One line is appended per message; a line that cannot be read is skipped. When the file cannot be written the
history goes on in memory, because losing it is no reason to stand in the way of a chat.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

# More than anyone pages through; the file is cut to this when it is twice as long.
KEEP = 1000


class PromptHistory:
    """A list with a cursor. ``older`` and ``newer`` walk it; what is being typed waits at its end."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lines = _read(file) if file else []
        self._position: int | None = None
        self._typed = ""

    def __repr__(self) -> str:
        return f"PromptHistory({len(self._lines)} entries)"

    def add(self, text: str) -> None:
        """Remember a text that was sent; the same one twice in a row is kept once."""
        self._position = None
        if not text.strip() or (self._lines and self._lines[-1] == text):
            return
        self._lines.append(text)
        if self._file is not None:
            _append(self._file, text)

    def older(self, typed: str) -> str | None:
        """The entry before, ``None`` at the oldest; ``typed`` is what the prompt holds now."""
        if self._position is None:
            self._position, self._typed = len(self._lines), typed
        if self._position == 0:
            return None
        self._position -= 1
        return self._lines[self._position]

    def newer(self) -> str | None:
        """The entry after, at the end what was being typed; ``None`` when not walking."""
        if self._position is None:
            return None
        self._position += 1
        if self._position < len(self._lines):
            return self._lines[self._position]
        self._position = None
        return self._typed

    def rest(self) -> None:
        """Stop walking: the prompt was changed by hand."""
        self._position = None


def _read(file: Path) -> list[str]:
    try:
        raw = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    lines = []
    for line in raw:
        try:
            text = json.loads(line)
        except ValueError:
            continue
        if isinstance(text, str):
            lines.append(text)
    if len(raw) > 2 * KEEP:
        _rewrite(file, lines[-KEEP:])
    return lines[-KEEP:]


def _append(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(file, "a", encoding="utf-8", opener=_private) as out:
            out.write(json.dumps(text) + "\n")
    except OSError as error:
        log.warning("the prompt history cannot be written to %s: %s", file, error)


def _rewrite(file: Path, lines: list[str]) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", opener=_private) as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)
        os.replace(temporary, file)
    except OSError as error:
        log.warning("the prompt history cannot be shortened in %s: %s", file, error)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
