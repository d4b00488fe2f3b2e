"""The nouns of the command line: name, module, one line of help. Adding a command is adding a line here.

The module is imported when its command is the one that was asked for, so ``infinichat --help`` costs nothing.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from infinichat.cli.context import Context
from infinichat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One noun. ``model`` says whether it takes ``--model``."""

    name: str
    module: str
    help: str
    model: bool = False


class CommandModule(Protocol):
    """What a noun's module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace, context: Context) -> int: ...


APP = Command("", "infinichat.cli.chat", "a local chat that never runs out of context", model=True)

COMMANDS = (
    Command("ask", "infinichat.cli.ask", "one question, the answer on stdout", model=True),
    Command("read", "infinichat.cli.read", "let a session's model read documents", model=True),
    Command("sessions", "infinichat.cli.sessions", "list, show, search, rename, delete, export, branch"),
    Command("models", "infinichat.cli.models", "list, pull, info, use, remove, verify checkpoints"),
    Command("memory", "infinichat.cli.memory", "what a session's memory holds", model=True),
    Command("retrofit", "infinichat.cli.retrofit", "a pretrained model becomes a checkpoint"),
    Command("train", "infinichat.cli.train", "a memory, a language model, the passkey task", model=True),
    Command("eval", "infinichat.cli.eval", "what a checkpoint remembers, measured", model=True),
    Command("bench", "infinichat.cli.bench", "speed and memory of the engine, and of the app", model=True),
    Command("doctor", "infinichat.cli.doctor", "check this machine and say what to do next"),
    Command("locate", "infinichat.cli.locate", "where things are on disk"),
    Command("backup", "infinichat.cli.backup", "every session and state in one file"),
    Command("restore", "infinichat.cli.restore", "sessions and states from a backup"),
    Command("verify", "infinichat.cli.verify", "re-derive every hash of the transcripts and states"),
)


def find_command(name: str) -> Command:
    """The command of this name; raises ``UsageError`` with near names."""
    by_name = {command.name: command for command in COMMANDS}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
    if near:
        raise UsageError(f"there is no command '{name}'; near: {', '.join(near)}. Next: infinichat --help")
    raise UsageError(
        f"there is no command '{name}'. Next: infinichat --help, or infinichat ask \"…\" to ask something"
    )


def load_module(command: Command) -> CommandModule:
    """Import the module behind a command."""
    return cast(CommandModule, importlib.import_module(command.module))
