"""``infinichat`` without a noun: the app, or with ``--plain`` a chat line by line.

The app needs a terminal; where there is none (a pipe, a log, ``TERM=dumb``) the plain chat is used by itself.
"""

from __future__ import annotations

import argparse
import os

from infinichat.cli.context import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--session", metavar="NAME", help="open this session; it is made when there is none")
    where.add_argument("--new", action="store_true", help="start a new session")
    parser.add_argument("--system", metavar="TEXT", help="system prompt of a new session")
    parser.add_argument("--plain", action="store_true", help="line by line, without full screen")


def run(args: argparse.Namespace, context: Context) -> int:
    if args.plain or not _can_paint(context):
        from infinichat.cli.plain import run_plain

        return run_plain(args, context)
    from infinichat.ui.app import run_app

    return run_app(
        session=args.session, new=args.new, model=args.model, system=args.system, paths=context.paths
    )


def _can_paint(context: Context) -> bool:
    return context.console.interactive and os.environ.get("TERM", "") != "dumb"
