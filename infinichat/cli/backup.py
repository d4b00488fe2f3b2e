"""``infinichat backup``: every session and saved state in one new zip file, taken at one moment."""

from __future__ import annotations

import argparse
from pathlib import Path

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json
from infinichat.text.figures import counted, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a new file; an existing one is never overwritten")
    add_json(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    file = Path(args.file).expanduser()
    with context.open_store() as store:
        sessions = len(store.sessions())
        store.backup(file)
    written = file.stat().st_size
    if args.json:
        context.console.json({"file": str(file), "bytes": written, "sessions": sessions})
    else:
        context.console.status(f"wrote {file}: {counted(sessions, 'session')}, {size(written)}")
    return 0
