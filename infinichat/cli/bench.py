"""``infinichat bench``: speed and memory. What is measured and how lives in ``infinichat.bench``, which is
imported only here, because it brings the engine and torch with it."""

from __future__ import annotations

import argparse

from infinichat.cli.context import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from infinichat.bench.main import add_arguments as add

    add(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from infinichat.bench.main import run as measure

    return measure(args)
