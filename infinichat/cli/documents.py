"""Files as documents: which files a path means, and their text.

A folder means every text file under it, in order of path, without hidden files and without what is not text.
A file that was named must be text; it is read as UTF-8 unless an encoding is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from infinichat.errors import InfiniChatError, UsageError

# Text files have no NUL byte; looking at this many bytes is enough to tell.
_SNIFF = 8192


@dataclass(frozen=True, slots=True)
class Document:
    """One text to read. ``title`` is the file's name, or its path inside the folder that was named."""

    title: str
    text: str


def documents(paths: Sequence[str], *, encoding: str = "utf-8-sig", stdin: str = "") -> Iterator[Document]:
    """The documents that these paths mean, one at a time; "-" is ``stdin``.

    Raises ``UsageError`` for a path that does not exist and ``InfiniChatError`` for a file that is not text.
    """
    for name in paths:
        if name == "-":
            yield Document("stdin", stdin)
            continue
        path = Path(name).expanduser()
        if path.is_dir():
            yield from _folder(path, encoding)
        elif path.exists():
            yield Document(path.name, read_text(path, encoding=encoding))
        else:
            raise UsageError(f"there is no file '{name}'. Next: check the path")


def check(paths: Sequence[str]) -> None:
    """Raise ``UsageError`` for the first path that does not exist, before any long work begins."""
    for name in paths:
        if name != "-" and not Path(name).expanduser().exists():
            raise UsageError(f"there is no file '{name}'. Next: check the path")


def read_text(path: Path, *, encoding: str = "utf-8-sig") -> str:
    """The text of one file; raises ``InfiniChatError`` when it cannot be read or is not text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InfiniChatError(
            f"'{path}' cannot be read ({error.strerror}). Next: check its permissions"
        ) from error
    if _is_binary(data):
        raise InfiniChatError(f"'{path}' is not a text file. Next: convert it to plain text first")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InfiniChatError(
            f"'{path}' is not {encoding.removesuffix('-sig')} at byte {error.start:,}. Next: name its "
            "encoding, as in --encoding latin-1"
        ) from error
    except LookupError as error:
        raise UsageError(
            f"'{encoding}' is not a known encoding; expected one like utf-8 or latin-1"
        ) from error


def _folder(root: Path, encoding: str) -> Iterator[Document]:
    found = False
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        with open(path, "rb") as file:
            if _is_binary(file.read(_SNIFF)):
                continue
        found = True
        yield Document(path.relative_to(root).as_posix(), read_text(path, encoding=encoding))
    if not found:
        raise InfiniChatError(f"there is no text file under '{root}'. Next: name the files themselves")


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:_SNIFF] and not data.startswith((b"\xff\xfe", b"\xfe\xff"))
