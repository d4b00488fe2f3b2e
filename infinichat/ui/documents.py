"""The texts that ``/read`` means: files, and every text file under a folder, opened one at a time.

A file is UTF-8, or it is refused with a sentence; what is not text in a folder is passed over.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import InfiniChatError, UsageError

# Text has no NUL byte; looking at this many bytes is enough to tell.
_SNIFF = 8192


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``title`` is the file's name, or its path inside the folder that was named."""

    title: str
    text: str


def named_paths(words: str) -> list[Path]:
    """The paths on a command line, quotation marks obeyed. Raises ``UsageError`` for one that does not
    exist."""
    try:
        names = shlex.split(words)
    except ValueError as error:
        raise UsageError(f'{words!r} has an open quotation mark. Expected: /read "a file.txt"') from error
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.exists():
            raise UsageError(f"There is no file '{path}'. Next: check the path; Tab completes it.")
    return paths


def documents(paths: list[Path]) -> Iterator[Document]:
    """Their texts in order. Raises ``InfiniChatError`` for a named file that is not readable UTF-8 text."""
    for path in paths:
        if not path.is_dir():
            yield Document(path.name, _text(path))
            continue
        inside = [file for file in sorted(path.rglob("*")) if _wanted(file, path)]
        if not inside:
            raise InfiniChatError(f"There is no text file under '{path}'. Next: name the files themselves.")
        for file in inside:
            yield Document(file.relative_to(path).as_posix(), _text(file))


def _wanted(file: Path, root: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(root).parts) or not file.is_file():
        return False
    with open(file, "rb") as start:
        return b"\0" not in start.read(_SNIFF)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if b"\0" not in data[:_SNIFF]:
            return data.decode("utf-8-sig")
    except OSError as error:
        raise InfiniChatError(
            f"'{path}' cannot be read ({error.strerror}). Next: check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise InfiniChatError(
            f"'{path}' is not UTF-8 at byte {error.start:,}. Next: convert it, for example with iconv."
        ) from error
    raise InfiniChatError(f"'{path}' is not a text file. Next: convert it to plain text first.")
