"""``infinichat read``: stream documents through a session's model.

Reading can be stopped with Ctrl+C at any moment; the same command goes on where it stopped, and passes over
the documents that the session has read whole (``--again`` reads them once more).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.cli.console import INTERRUPTED
from infinichat.cli.context import Context
from infinichat.cli.parser import add_json
from infinichat.cli.streaming import play
from infinichat.text.documents import Document, documents, named_paths
from infinichat.text.figures import duration

if TYPE_CHECKING:
    from infinichat.session import ChatSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="text files or folders; - is stdin")
    parser.add_argument("--session", metavar="NAME", required=True, help="made when there is none")
    parser.add_argument("--encoding", metavar="NAME", default="utf-8-sig", help="of the files; default UTF-8")
    parser.add_argument("--again", action="store_true", help="also read what this session has read already")
    add_json(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    console = context.console
    named_paths(name for name in args.files if name != "-")
    stdin = console.piped_text() if "-" in args.files else ""
    rows: list[dict[str, object]] = []
    interrupted = False
    with context.open_session(args.session, model=args.model) as session:
        for document in wanted(args.files, encoding=args.encoding, stdin=stdin):
            row, interrupted = read_one(session, document, context, again=args.again)
            rows.append(row)
            if interrupted:
                console.status("stopped; the same command goes on from here")
                break
        if args.json:
            seen = session.memory_report().tokens_seen
            console.json({"session": session.name, "documents": rows, "tokens_seen": seen})
    return INTERRUPTED if interrupted else 0


def wanted(names: Sequence[str], *, encoding: str, stdin: str) -> Iterator[Document]:
    """The documents that the names on the command line mean; "-" is what was piped in."""
    for name in names:
        if name == "-":
            yield Document("stdin", stdin)
        else:
            yield from documents([Path(name).expanduser()], encoding=encoding)


def read_one(
    session: ChatSession, document: Document, context: Context, *, again: bool
) -> tuple[dict[str, object], bool]:
    """Read one document with progress; what it cost, and whether Ctrl+C stopped it."""
    started = time.monotonic()
    events = session.read(document.title, document.text, again=again)
    finished, interrupted = play(session, events, context.console)
    seconds = time.monotonic() - started
    tokens = finished.stats.tokens_in if finished else 0
    row: dict[str, object] = {
        "title": document.title,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else None,
        "reason": finished.message.reason if finished else "stopped",
    }
    if tokens and not interrupted:
        speed = tokens / max(seconds, 1e-9)
        context.console.status(
            f"read {document.title}: {tokens:,} tokens in {duration(seconds)} ({speed:,.0f} tokens/s)"
        )
    return row, interrupted
