"""Putting text on the system's clipboard beside the terminal's own way (OSC 52), which not every terminal
has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping

TIMEOUT_S = 2.0


def tool(environ: Mapping[str, str]) -> list[str] | None:
    """The command that takes the text on its standard input; ``None`` when this machine has none."""
    if sys.platform == "darwin":
        return ["pbcopy"]
    if sys.platform == "win32":
        return ["clip"]
    if environ.get("TMUX"):
        # -w passes it on to the terminal's clipboard as well.
        return ["tmux", "load-buffer", "-w", "-"]
    if environ.get("WAYLAND_DISPLAY") and shutil.which("wl-copy"):
        return ["wl-copy"]
    if environ.get("DISPLAY") and shutil.which("xclip"):
        return ["xclip", "-selection", "clipboard"]
    return None


def copy(text: str, *, environ: Mapping[str, str]) -> bool:
    """Whether a tool took the text. Blocks up to ``TIMEOUT_S`` seconds."""
    command = tool(environ)
    if command is None:
        return False
    encoding = "utf-16" if sys.platform == "win32" else "utf-8"
    try:
        done = subprocess.run(
            command,
            input=text.encode(encoding, errors="replace"),
            timeout=TIMEOUT_S,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
