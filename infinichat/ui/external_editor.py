"""Writing a message in the user's own editor: ``$VISUAL``, ``$EDITOR``, or the platform's plain one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infinichat.errors import InfiniChatError


def command(environ: Mapping[str, str]) -> list[str]:
    """The editor's command line, without the file."""
    chosen = environ.get("VISUAL") or environ.get("EDITOR")
    if chosen:
        return shlex.split(chosen, posix=sys.platform != "win32")
    return ["notepad"] if sys.platform == "win32" else ["vi"]


def edit(text: str, *, environ: Mapping[str, str]) -> str:
    """``text`` after the user changed it. The app must be suspended meanwhile.

    Raises ``InfiniChatError`` when the editor cannot be started or fails; the text is unchanged then.
    """
    # One's messages are one's own: mkstemp makes the file readable by its owner only.
    handle, name = tempfile.mkstemp(prefix="infinichat-", suffix=".md")
    file = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        try:
            done = subprocess.run([*command(environ), name], check=False)
        except OSError as error:
            raise InfiniChatError(
                f"The editor {command(environ)[0]!r} cannot be started ({error.strerror}). Next: set EDITOR."
            ) from error
        if done.returncode:
            raise InfiniChatError(
                f"The editor ended with status {done.returncode}; the message is unchanged."
            )
        return file.read_text(encoding="utf-8", errors="replace")
    finally:
        file.unlink(missing_ok=True)
