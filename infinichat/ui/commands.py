"""The slash commands as a table: what the completion list, the help screen and the palette show.

A command runs ``ChatScreen``'s method ``command_<name>`` (``screens/chat_commands.py``) with the rest of the
line. A line that begins with two slashes is a message that begins with one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from infinichat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command. ``required`` says that it cannot run without arguments."""

    name: str
    arguments: str
    help: str
    required: bool = False


COMMANDS: tuple[Command, ...] = (
    Command("help", "", "keys and commands"),
    Command("new", "[NAME]", "start a new session"),
    Command("sessions", "[WORDS]", "all sessions; search titles and every word ever said"),
    Command("open", "NAME", "go to another session", required=True),
    Command("search", "WORDS", "find words in all sessions", required=True),
    Command("model", "[NAME]", "the checkpoints; switch to one"),
    Command("memory", "", "what the memory holds, layer by layer"),
    Command("read", "FILE…", "let the model read documents or folders", required=True),
    Command("regenerate", "", "another answer to the same message"),
    Command("edit", "", "change your last message and send it again"),
    Command("continue", "", "go on with an answer that was stopped"),
    Command("branch", "[NAME]", "a new session that goes on from here"),
    Command("copy", "[code|all]", "copy the last answer, its last code, or everything"),
    Command("rename", "NAME", "give this session another name", required=True),
    Command("pin", "", "keep this session at the top of the list, or no longer"),
    Command("system", "[TEXT]", "show or set the system prompt"),
    Command("set", "[KEY VALUE]", "how answers are sampled, for example temperature 0.2"),
    Command("export", "[FILE]", "write this session as Markdown, or JSON when FILE ends in .json"),
    Command("import", "FILE", "read a session from an exported JSON file", required=True),
    Command("editor", "", "write the message in your own editor"),
    Command("theme", "[NAME]", "colours"),
    Command("quit", "", "leave; everything is saved"),
)

_BY_NAME = {command.name: command for command in COMMANDS}
_ALIASES = {
    "exit": "quit",
    "q": "quit",
    "models": "model",
    "retry": "regenerate",
    "regen": "regenerate",
    "?": "help",
    "switch": "open",
}


def parse(line: str) -> tuple[Command, str]:
    """The command of "/name rest" and the rest. Raises ``UsageError`` with near names, or what is missing."""
    name, _, rest = line[1:].strip().partition(" ")
    name = _ALIASES.get(name, name)
    command = _BY_NAME.get(name)
    if command is None:
        near = difflib.get_close_matches(name, [*_BY_NAME, *_ALIASES], n=3, cutoff=0.5)
        hint = f"Near: {', '.join('/' + match for match in near)}." if near else "/help lists them."
        raise UsageError(f"There is no command /{name}. {hint} A line that begins with // is sent as text.")
    rest = rest.strip()
    if command.required and not rest:
        raise UsageError(f"/{name} needs more. Expected: /{name} {command.arguments}")
    return command, rest
