"""The chat line by line: for screen readers, pipes, logs and terminals that cannot paint.

A line is a message; a line of three quotation marks begins and ends a message of several lines. ``/help``
lists the commands and ``//`` sends a text that begins with a slash. Ctrl+C stops an answer and keeps what was
said; Ctrl+D leaves. From a pipe every line is answered in turn, without prompts, until the first failure.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from infinichat.cli.console import INTERRUPTED, Console
from infinichat.cli.context import Context
from infinichat.cli.plain_commands import PlainChat, run_command
from infinichat.errors import InfiniChatError
from infinichat.text.figures import counted

_QUOTES = '"""'
_PROMPT = "you: "
_MORE = "... "


def run_plain(args: argparse.Namespace, context: Context) -> int:
    """Chat until the input ends. 0, or the exit status of the failure that ended a piped chat."""
    console = context.console
    person = console.stdin.isatty()
    if person:
        console.status("loading the model …")
    with PlainChat(context) as chat:
        name = args.session or (None if args.new else last_session(context))
        chat.open(name, model=args.model, system=args.system)
        if person:
            _greet(chat)
        return _loop(chat, messages(console, person=person), person=person)


def last_session(context: Context) -> str | None:
    """Id of the session that was used last, ``None`` when there is none."""
    with context.open_store() as store:
        last = store.last_session()
    return last.id if last else None


def _greet(chat: PlainChat) -> None:
    said = len(chat.session.messages())
    info = chat.session.engine_info
    chat.console.status(
        f"session {chat.session.name}, {counted(said, 'message')}, model {info.name}"
        f"{'' if info.trained else ' (its memory is not trained: it remembers the window only)'}. "
        "/help lists the commands, Ctrl+C stops an answer, Ctrl+D leaves."
    )


def _loop(chat: PlainChat, texts: Iterator[str], *, person: bool) -> int:
    for text in texts:
        try:
            interrupted = _answer(chat, text)
        except InfiniChatError as error:
            chat.console.fail(str(error))
            if not person:
                return error.exit_status
            continue
        if interrupted and not person:
            return INTERRUPTED
        if chat.leaving:
            break
    return 0


def _answer(chat: PlainChat, text: str) -> bool:
    if text.startswith("/") and not text.startswith("//"):
        return run_command(chat, text)
    return chat.say(chat.session.send(text[1:] if text.startswith("//") else text))


def messages(console: Console, *, person: bool) -> Iterator[str]:
    """The messages that are typed or piped in, without empty ones."""
    lines = _typed(console) if person else (line.rstrip("\r\n") for line in console.stdin)
    block: list[str] | None = None
    for line in lines:
        if line.strip() == _QUOTES:
            if block and "\n".join(block).strip():
                yield "\n".join(block)
            block = [] if block is None else None
        elif block is not None:
            block.append(line)
        elif line.strip():
            yield line
    if block and "\n".join(block).strip():
        yield "\n".join(block)


def _typed(console: Console) -> Iterator[str]:
    """Lines from a person, with line editing where Python has it; Ctrl+C gives up the line."""
    try:
        importlib.import_module("readline")
    except ImportError:
        console.status("(this Python has no line editing)")
    inside = False
    while True:
        try:
            line = input(_MORE if inside else _PROMPT)
        except EOFError:
            console.status("")
            return
        except KeyboardInterrupt:
            console.status("\n(Ctrl+D or /quit leaves)")
            continue
        inside ^= line.strip() == _QUOTES
        yield line
