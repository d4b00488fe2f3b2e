"""Files as documents: which files a path means, and their text.

A folder means every text file under it, in order of path, without hidden files and without what is not text.
A file that was named must be text; it is read as UTF-8 unless an encoding is given.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import InfiniChatError, UsageError

# Text has no NUL byte; looking at this many bytes is enough to tell.
_SNIFF = 8192

_UTF8 = "utf-8-sig"


@dataclass(frozen=True, slots=True)
class Document:
    """One text to read. ``title`` is the file's name, or its path inside the folder that was named."""

    title: str
    text: str


def split_names(line: str) -> list[str]:
    """The names on a command line, quotation marks obeyed. Raises ``UsageError`` for an open one."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f'{line!r} has an open quotation mark. Expected: /read "a file.txt"') from error


def named_paths(names: Iterable[str]) -> list[Path]:
    """The paths with these names; raises ``UsageError`` for the first that does not exist, before any long
    work begins."""
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.exists():
            raise UsageError(f"There is no file '{path}'. Next: check the path.")
    return paths


def documents(paths: Iterable[Path], *, encoding: str = _UTF8) -> Iterator[Document]:
    """The documents that these paths mean, opened one at a time.

    Raises ``UsageError`` for a path that does not exist and ``InfiniChatError`` for a file that is not text.
    """
    for path in paths:
        if path.is_dir():
            yield from _folder(path, encoding)
        else:
            yield Document(path.name, read_text(path, encoding=encoding))


def read_text(path: Path, *, encoding: str = _UTF8) -> str:
    """The text of one file; raises ``UsageError`` when there is none, ``InfiniChatError`` when it cannot be
    read or is not text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"There is no file '{path}'. Next: check the path.") from error
    except OSError as error:
        raise InfiniChatError(
            f"'{path}' cannot be read ({error.strerror}). Next: check its permissions."
        ) from error
    if _is_binary(data):
        raise InfiniChatError(f"'{path}' is not a text file. Next: convert it to plain text first.")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InfiniChatError(
            f"'{path}' is not {encoding.removesuffix('-sig')} at byte {error.start:,}. Next: convert it with "
            "iconv, or name its encoding: infinichat read --encoding latin-1"
        ) from error
    except LookupError as error:
        raise UsageError(
            f"'{encoding}' is not a known encoding; expected one like utf-8 or latin-1."
        ) from error


def _folder(root: Path, encoding: str) -> Iterator[Document]:
    inside = [file for file in sorted(root.rglob("*")) if _wanted(file, root)]
    if not inside:
        raise InfiniChatError(f"There is no text file under '{root}'. Next: name the files themselves.")
    for file in inside:
        yield Document(file.relative_to(root).as_posix(), read_text(file, encoding=encoding))


def _wanted(file: Path, root: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(root).parts) or not file.is_file():
        return False
    try:
        with open(file, "rb") as start:
            return not _is_binary(start.read(_SNIFF))
    except OSError as error:
        raise InfiniChatError(
            f"'{file}' cannot be read ({error.strerror}). Next: check its permissions."
        ) from error


def _is_binary(data: bytes) -> bool:
    """Whether these bytes are no text. UTF-16 has NUL bytes and says so at its beginning."""
    return b"\0" in data[:_SNIFF] and not data.startswith((b"\xff\xfe", b"\xfe\xff"))
