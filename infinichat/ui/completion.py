"""What the list above the prompt offers while a slash command is typed: commands, then their arguments.

Pure: the text before the cursor goes in, candidates come out. A command completes by prefix, then by the
letters it contains in order; ``/read`` completes paths on disk; other arguments come from ``choices``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infinichat.ui.commands import COMMANDS, Command

MOST = 50


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of the list. Taking it makes the text before the cursor ``text``; ``final`` says that Enter
    may run it at once."""

    label: str
    help: str
    text: str
    final: bool


Choices = Mapping[str, Callable[[], Sequence[tuple[str, str]]]]
"""For a command's name: its possible arguments, each with a line of help."""


def candidates(before: str, choices: Choices) -> list[Candidate]:
    """What fits the text before the cursor; nothing unless it is a one-line slash command."""
    if not before.startswith("/") or before.startswith("//") or "\n" in before:
        return []
    name, blank, argument = before[1:].partition(" ")
    if not blank:
        return [_of_command(command) for command in matching_commands(name)]
    if name == "read":
        return _paths(argument)
    if name not in choices:
        return []
    wanted = argument.strip().lower()
    found = [
        Candidate(value, note, f"/{name} {value}", True)
        for value, note in choices[name]()
        if wanted in value.lower()
    ]
    if [candidate.label for candidate in found] == [argument.strip()]:
        return []
    # Enter takes the first one: what was typed in full is what is meant, not a longer name with it inside.
    return sorted(found, key=lambda candidate: candidate.label.lower() != wanted)[:MOST]


def matching_commands(name: str) -> list[Command]:
    """Commands that begin with ``name``, then those that hold its letters in order."""
    name = name.lower()
    first = [c for c in COMMANDS if c.name.startswith(name)]
    return first + [c for c in COMMANDS if c not in first and _subsequence(name, c.name)]


def _subsequence(letters: str, word: str) -> bool:
    rest = iter(word)
    return all(letter in rest for letter in letters)


def _of_command(command: Command) -> Candidate:
    label = f"/{command.name} {command.arguments}".rstrip()
    needs_more = bool(command.arguments)
    return Candidate(label, command.help, f"/{command.name}" + " " * needs_more, not command.required)


def _paths(argument: str) -> list[Candidate]:
    """Files and folders that begin with the last word of ``argument`` (words may be quoted)."""
    head, word = _last_word(argument)
    folder, _, start = word.rpartition("/")
    root = Path(f"{folder}/" if folder or word.startswith("/") else ".").expanduser()
    try:
        # What was typed in full comes first: Enter takes it.
        entries = sorted(root.iterdir(), key=lambda e: (e.name != start, not e.is_dir(), e.name.lower()))
    except OSError:
        return []
    found = []
    if folder and not start:
        found.append(Candidate(word, "the whole folder", f"/read {head}{_quoted(word)}", True))
    for entry in entries:
        if not entry.name.lower().startswith(start.lower()) or (entry.name.startswith(".") and not start):
            continue
        path = f"{folder}/{entry.name}" if folder or word.startswith("/") else entry.name
        shown = path + "/" * entry.is_dir()
        kind = "folder" if entry.is_dir() else ""
        found.append(Candidate(shown, kind, f"/read {head}{_quoted(shown)}", entry.is_file()))
    return found[:MOST]


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def _last_word(argument: str) -> tuple[str, str]:
    """``argument`` split before its last word; an open or closed quotation mark belongs to the word."""
    closed = argument.count('"') % 2 == 0
    if not closed or argument.endswith('"'):
        head, _, word = argument.removesuffix('"' if closed else "").rpartition('"')
        return head, word
    head, blank, word = argument.rpartition(" ")
    return head + blank, word
