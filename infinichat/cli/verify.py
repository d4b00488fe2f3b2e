"""``infinichat verify``: re-derive every hash of the transcripts and check every saved state."""

from __future__ import annotations

import argparse

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json
from infinichat.text.figures import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    with context.open_store() as store:
        sessions = len(store.sessions())
        faults = store.verify()
    console = context.console
    if args.json:
        console.json({"sessions": sessions, "faults": faults})
    elif not faults:
        console.line(
            f"{counted(sessions, 'session')}: every message and every saved state is as it was written"
        )
    for fault in [] if args.json else faults:
        console.line(fault)
    if faults:
        console.fail(
            f"{counted(len(faults), 'fault')} found. Damaged states are rebuilt from the transcript when "
            "their session is opened; for damaged messages, next: infinichat restore FILE with a backup"
        )
    return 1 if faults else 0
