"""``infinichat train prepare``: well-known corpora, as one finds them, into parts that ``train lm`` reads.

    bytes     one file, such as enwik8: its bytes, 90 % to train.txt, 5 % to validation.txt, 5 % to test.txt,
              for enwik8 the usual 90, 5 and 5 million
    wikitext  wiki.train.tokens or .raw, wiki.valid, wiki.test: one article a line in train.jsonl and so on,
              begun by " = Title = "
    books     folders train, validation and test of *.txt, such as PG-19's, with an optional metadata.csv
              (number, title, ...): one book a line

Nothing of the text is changed. ``prepared.json`` counts what there is and what stands in two parts.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from infinichat.errors import UsageError

Kind = Literal["bytes", "wikitext", "books"]
KINDS: tuple[Kind, ...] = ("bytes", "wikitext", "books")

NAMES = {"train": ("train",), "validation": ("valid", "validation"), "test": ("test",)}
HELD_OUT = 20
"""One part in so many of a file's bytes is for validation, and as many for test."""

TITLE = re.compile(r" = ([^=].*[^=]|[^=]) = \n?")
COPIED = 1 << 22
"""Bytes copied at a time."""

Document = dict[str, str]


def prepare_corpus(source: Path, out: Path, kind: Kind | None = None) -> dict[str, Any]:
    """Write the parts of ``source`` into the new folder ``out``; returns what ``prepared.json`` says. Without
    a ``kind`` it is told from what is there. Raises ``UsageError`` for what does not look like it."""
    kind = kind or kind_of(source)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is there already. Choose a folder that does not exist yet.")
    out.mkdir(parents=True, exist_ok=True)
    if kind == "bytes":
        parts = _bytes(source, out)
    else:
        found = _articles(source) if kind == "wikitext" else _books(source)
        parts = _documents(found, out)
    record = {"kind": kind, "source": source.name, "parts": parts}
    (out / "prepared.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def kind_of(source: Path) -> Kind:
    """What ``source`` looks like; raises ``UsageError`` when like nothing known."""
    if source.is_file():
        return "bytes"
    if source.is_dir() and _wiki_files(source):
        return "wikitext"
    if (source / "train").is_dir():
        return "books"
    raise UsageError(
        f"{source} is no file, has no wiki.train.* and no folder train. Name one of these, or say --kind "
        f"{', '.join(KINDS)}."
    )


def _bytes(source: Path, out: Path) -> dict[str, Any]:
    if not source.is_file() or source.stat().st_size < HELD_OUT:
        raise UsageError(f"{source} is no file of {HELD_OUT} bytes or more. Name one file, such as enwik8.")
    size = source.stat().st_size
    share = size // HELD_OUT
    parts: dict[str, Any] = {}
    with source.open("rb") as data:
        for part, length in (("train", size - 2 * share), ("validation", share), ("test", share)):
            digest = hashlib.sha256()
            with (out / f"{part}.txt").open("wb") as file:
                left = length
                while left:
                    piece = data.read(min(left, COPIED))
                    left -= len(piece)
                    digest.update(piece)
                    file.write(piece)
            parts[part] = {"documents": 1, "bytes": length, "sha256": digest.hexdigest()}
    return parts


def _documents(found: dict[str, Iterator[Document]], out: Path) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    earlier: set[bytes] = set()
    for part, documents in found.items():
        digest, count, size, twice = hashlib.sha256(), 0, 0, 0
        own: set[bytes] = set()
        with (out / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for document in documents:
                line = json.dumps(document, ensure_ascii=False) + "\n"
                file.write(line)
                digest.update(line.encode())
                text = document["text"].encode()
                mark = hashlib.sha256(text).digest()
                own.add(mark)
                count, size, twice = count + 1, size + len(text), twice + (mark in earlier)
        earlier |= own
        if not count:
            raise UsageError(f"the part {part} has no document. Is it of another kind? See --kind.")
        parts[part] = {
            "documents": count,
            "bytes": size,
            "in_earlier_parts": twice,
            "sha256": digest.hexdigest(),
        }
    return parts


def _wiki_files(source: Path) -> dict[str, Path]:
    """The files of WikiText's parts."""
    return {
        part: file
        for part, names in NAMES.items()
        for name in names
        for file in sorted(source.glob(f"wiki.{name}.*"))[:1]
    }


def _articles(source: Path) -> dict[str, Iterator[Document]]:
    files = _wiki_files(source)
    if "train" not in files:
        raise UsageError(f"{source} has no wiki.train.tokens or wiki.train.raw. Name WikiText's folder.")
    return {part: _articles_of(file) for part, file in files.items()}


def _articles_of(file: Path) -> Iterator[Document]:
    title, before = "", ""
    lines: list[str] = []
    with file.open(encoding="utf-8", newline="") as text:
        for line in text:
            # A line of a table can look like a title; titles stand after an empty line.
            found = TITLE.fullmatch(line) if not before.strip() else None
            if found and any(line.strip() for line in lines):
                yield {"title": title, "text": "".join(lines)}
                lines = []
            if found:
                title = found[1]
            lines.append(line)
            before = line
    if any(line.strip() for line in lines):
        yield {"title": title, "text": "".join(lines)}


def _books(source: Path) -> dict[str, Iterator[Document]]:
    titles = _titles(source / "metadata.csv")
    folders = {
        part: source / name for part, names in NAMES.items() for name in names if (source / name).is_dir()
    }
    if "train" not in folders:
        raise UsageError(f"{source} has no folder train. Name a folder with train, validation and test.")
    return {part: _books_of(folder, titles) for part, folder in folders.items()}


def _books_of(folder: Path, titles: dict[str, str]) -> Iterator[Document]:
    for file in sorted(folder.glob("*.txt")):
        with file.open(encoding="utf-8", errors="replace", newline="") as text:
            yield {"title": titles.get(file.stem, file.stem), "text": text.read()}


def _titles(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as rows:
        return {row[0]: row[1] for row in csv.reader(rows) if len(row) > 1}
