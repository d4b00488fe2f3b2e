"""``infinichat locate``: where things are on disk. With a name, only that path, for use in scripts."""

from __future__ import annotations

import argparse
from pathlib import Path

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json
from infinichat.cli.text import table
from infinichat.paths import Paths

NAMES = (
    "data", "database", "snapshots", "locks", "models", "backups",
    "config", "settings", "keymap", "cache", "state", "log", "history",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add_json(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    located = locations(context.paths)
    if args.name:
        context.console.line(str(located[args.name]))
    elif args.json:
        context.console.json({name: str(path) for name, path in located.items()})
    else:
        rows = [
            [name, str(path), "" if path.exists() else "(not made yet)"] for name, path in located.items()
        ]
        context.console.line(table(["WHAT", "WHERE", ""], rows))
    return 0


def locations(paths: Paths) -> dict[str, Path]:
    """Every place by its name."""
    return {name: getattr(paths, name) for name in NAMES}
