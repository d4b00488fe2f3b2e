"""``infinichat restore``: sessions and saved states from a backup. What was there before is kept aside."""

from __future__ import annotations

import argparse
from pathlib import Path

from infinichat.cli.context import Context
from infinichat.errors import UsageError
from infinichat.text.figures import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="made by infinichat backup")
    parser.add_argument("--replace", action="store_true", help="put aside the sessions that are here now")


def run(args: argparse.Namespace, context: Context) -> int:
    from infinichat.store.backup import restore_backup

    file = Path(args.file).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no file '{file}'. Next: check the path")
    if context.paths.database.exists() and not args.replace:
        raise UsageError(
            f"there are sessions in {context.paths.data} already. "
            f"Next: infinichat restore '{file}' --replace, which keeps them aside"
        )
    aside = restore_backup(file, context.paths, replace=args.replace)
    with context.open_store() as store:
        context.console.status(f"restored {counted(len(store.sessions()), 'session')}")
    if aside:
        context.console.status(f"what was here before is in {aside}")
    return 0
