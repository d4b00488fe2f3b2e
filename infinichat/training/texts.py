"""Documents to train on, streamed: nothing larger than a piece of one is ever in memory.

    *.txt *.md and any other file   one document
    *.jsonl                         a document a line, its ``text`` (or another column)
    *.parquet *.arrow               a document a row, the same column; needs pyarrow
    a folder                        all of these in it, by name; what ``datasets.save_to_disk`` writes as well

A folder with parts named train and validation (as folders or files; also valid, dev, test) is taken as they
say. From anything else a share of the documents is held out by their content, so that what is there twice is
on one side only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infinichat.errors import UsageError

Part = Literal["train", "validation"]

PIECE_CHARS = 1 << 18
"""Characters of a document that are read at a time, up to the next white space."""

PARTS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev"),
}
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".arrow")


@dataclass(frozen=True, slots=True)
class Texts:
    """Where documents come from. ``train`` is a file or folder; without ``validation`` (another one)
    ``held_out`` percent of the documents are it. ``column`` names the text in files that have columns."""

    train: Path
    validation: Path | None = None
    held_out: int = 5
    column: str = "text"

    def documents(self, part: Part) -> Iterator[Iterator[str]]:
        """The documents of a part in a fixed order, each in pieces; take all of one before the next. Raises
        ``UsageError`` for what cannot be read."""
        if part == "validation" and self.validation is not None:
            yield from _documents(self.validation, self.column)
            return
        own = part_of(self.train, part)
        if own is not None:
            yield from _documents(own, self.column)
            return
        splits = self.validation is None and part_of(self.train, "validation") is None
        whole = part_of(self.train, "train") or self.train
        for document in _documents(whole, self.column):
            first = next(document, "")
            if not splits or _is_held_out(first, self.held_out) == (part == "validation"):
                yield _joined(first, document)


def part_of(place: Path, part: Part) -> Path | None:
    """The folder or file named after a part inside the folder ``place``, if there is one."""
    if not place.is_dir():
        return None
    names = [name for stem in PARTS[part] for name in (stem, *(stem + suffix for suffix in SUFFIXES))]
    return next((place / name for name in names if (place / name).exists()), None)


def files_of(place: Path) -> list[Path]:
    """The files with text at ``place``, by name; raises ``UsageError`` when there is none."""
    if place.is_file():
        return [place]
    found = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES) if place.is_dir() else []
    if not found:
        raise UsageError(
            f"{place} is neither a file nor a folder with {', '.join('*' + s for s in SUFFIXES)} in it. Name "
            "text on this disk; a dataset's name is not looked up anywhere."
        )
    return found


def _is_held_out(text: str, percent: int) -> bool:
    digest = hashlib.sha256(text.encode("utf-8", errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _documents(place: Path, column: str) -> Iterator[Iterator[str]]:
    for file in files_of(place):
        if file.suffix == ".jsonl":
            yield from _lines(file, column)
        elif file.suffix in (".parquet", ".arrow"):
            yield from _rows(file, column)
        else:
            yield _pieces(file)


def _pieces(file: Path) -> Iterator[str]:
    """A text file in pieces that end at white space, so that no word is cut for the tokenizer."""
    with file.open(encoding="utf-8", errors="replace", newline="") as text:
        while piece := text.read(PIECE_CHARS):
            while not piece[-1].isspace() and (more := text.read(256)):
                cut = next((at for at, char in enumerate(more) if char.isspace()), -1)
                piece += more
                if cut >= 0:
                    break
            yield piece


def _lines(file: Path, column: str) -> Iterator[Iterator[str]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{file}, line {number} is not JSON ({error}). Mend the line.") from None
            yield iter((_text_in(value, column, f"{file}, line {number}"),))


def _text_in(value: Any, column: str, where: str) -> str:
    text = value.get(column) if isinstance(value, dict) else None
    if not isinstance(text, str):
        known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise UsageError(f"{where} has no text under {column!r}, but {known}. Name it: --text_column_name")
    return text


def _rows(file: Path, column: str) -> Iterator[Iterator[str]]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise UsageError(
            f"{file.name} needs pyarrow to be read. Next: pip install 'infinichat[train]'"
        ) from None
    try:
        if file.suffix == ".parquet":
            with parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                batches = table.iter_batches(columns=[column], batch_size=256) if column in names else None
                yield from _texts(batches, names, column, file)
            return
        with pyarrow.memory_map(str(file)) as mapped:
            try:
                stream = ipc.open_stream(mapped)
                batches, names = iter(stream), stream.schema.names
            except pyarrow.ArrowInvalid:
                whole = ipc.open_file(mapped)
                names = whole.schema.names
                batches = (whole.get_batch(at) for at in range(whole.num_record_batches))
            yield from _texts(batches if column in names else None, names, column, file)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{file} cannot be read ({error}). Write it again.") from None


def _texts(batches: Any, names: list[str], column: str, file: Path) -> Iterator[Iterator[str]]:
    if batches is None:
        raise UsageError(
            f"{file} has no column {column!r}, but {', '.join(names)}. Name one: --text_column_name"
        )
    for batch in batches:
        for text in batch.column(batch.schema.names.index(column)).to_pylist():
            if isinstance(text, str):
                yield iter((text,))
