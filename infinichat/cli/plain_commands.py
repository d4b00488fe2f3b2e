"""The slash commands of the plain chat, as a table: name, arguments, help, function.

Each function gets the chat and the rest of the line and returns whether Ctrl+C stopped it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.cli.memory import memory_text
from infinichat.cli.read import read_one
from infinichat.cli.sessions import format_for, sessions_table, transcript_entry, write_text
from infinichat.cli.streaming import play
from infinichat.errors import InfiniChatError, UsageError
from infinichat.messages import StreamEvent
from infinichat.protocols import Engine
from infinichat.text.documents import documents, named_paths, split_names
from infinichat.text.figures import ago
from infinichat.text.harmless import one_line

if TYPE_CHECKING:
    from infinichat.session import ChatSession


class PlainChat:
    """The session that is open, and the engine, which stays loaded from one session to the next."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.leaving = False
        self._session: ChatSession | None = None
        self._engine: Engine | None = None
        self._asked: str | None = None  # the model's name or path that the engine was loaded for

    def __repr__(self) -> str:
        return f"PlainChat({self._session!r})"

    @property
    def console(self) -> Console:
        return self.context.console

    @property
    def session(self) -> ChatSession:
        assert self._session is not None, "open() comes first"
        return self._session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.close()
        if self._engine is not None:
            self._engine.close()

    def open(self, name: str | None, *, model: str | None = None, system: str | None = None) -> None:
        """Open this session instead of the one that is open; ``None`` makes a new one.

        The engine is loaded anew only when the session wants another model.
        """
        with self.context.open_store() as store:
            record = store.find_session(name) if name else None
            if record is not None and (self._session is None or record.id != self._session.id):
                # Refused before a model is loaded for it; taken again when the session is opened.
                store.lock(record.id).release()
        wanted = model or (record.model if record else self._asked) or self.context.settings().model
        engine, asked = self._engine, self._asked
        if engine is None or wanted not in {asked, engine.info.name}:
            engine, asked = self.context.load_engine(wanted), wanted
        try:
            session = self.context.open_session(
                name, model=model, new=name is None, system=system, engine=engine
            )
        except InfiniChatError:  # the session that is open stays open, with its engine
            if engine is not self._engine:
                engine.close()
            raise
        if self._session is not None:
            self._session.close()
        self._session = session
        self._take(engine, asked)

    def switch_model(self, model: str) -> bool:
        """Stream the session into another model; returns whether Ctrl+C stopped that."""
        engine = self.context.load_engine(model)
        try:
            return self.say(self.session.switch_model(engine))
        finally:
            # Stopped or failed, the session has stayed with the engine that it had.
            if self.session.engine_info.fingerprint == engine.info.fingerprint:
                self._take(engine, model)
            else:
                engine.close()

    def say(self, events: Iterator[StreamEvent]) -> bool:
        """Stream one answer; returns whether Ctrl+C stopped it."""
        finished, interrupted = play(self.session, events, self.console)
        if finished and finished.message.role == "assistant":
            self.console.line()
            if finished.message.reason in {"length", "stopped"}:
                self.console.status(f"({finished.message.reason}; /continue goes on)")
        return interrupted

    def _take(self, engine: Engine, asked: str | None) -> None:
        if self._engine is not None and self._engine is not engine:
            self._engine.close()
        self._engine, self._asked = engine, asked


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """One slash command."""

    name: str
    arguments: str
    help: str
    run: Callable[[PlainChat, str], bool]


def run_command(chat: PlainChat, line: str) -> bool:
    """Run "/name rest"; raises ``UsageError`` with near names for a command that does not exist."""
    name, _, rest = line[1:].partition(" ")
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.5)
        hint = f"near: {', '.join('/' + match for match in near)}" if near else "/help lists them"
        raise UsageError(f"there is no command '/{name}'; {hint}. Two slashes send it as text")
    return _BY_NAME[name].run(chat, rest.strip())


def _needs(rest: str, command: str) -> str:
    if not rest:
        raise UsageError(f"'{command.split()[0]}' needs an argument: {command}")
    return rest


def _help(chat: PlainChat, rest: str) -> bool:
    width = max(len(f"{command.name} {command.arguments}") for command in SLASH_COMMANDS)
    for command in SLASH_COMMANDS:
        chat.console.line(f"/{f'{command.name} {command.arguments}':<{width}}  {command.help}")
    chat.console.line('"""  on a line of its own begins and ends a message of several lines')
    return False


def _quit(chat: PlainChat, rest: str) -> bool:
    chat.leaving = True
    return False


def _new(chat: PlainChat, rest: str) -> bool:
    chat.open(None)
    if rest:
        _rename(chat, rest)
    return False


def _open(chat: PlainChat, rest: str) -> bool:
    with chat.context.open_store() as store:
        record = store.session(_needs(rest, "/open NAME"))
    if record.id != chat.session.id:
        chat.open(record.id)
    chat.console.status(f"session {record.name}, model {chat.session.engine_info.name}")
    return False


def _sessions(chat: PlainChat, rest: str) -> bool:
    with chat.context.open_store() as store:
        chat.console.line(sessions_table(store.sessions(query=rest or None)))
    return False


def _search(chat: PlainChat, rest: str) -> bool:
    with chat.context.open_store() as store:
        hits = store.search(_needs(rest, "/search WORDS"), limit=20)
    for hit in hits:
        chat.console.line(f"{hit.session_name}, {ago(hit.created)}, {hit.role}: {one_line(hit.snippet, 160)}")
    if not hits:
        chat.console.status("nothing found")
    return False


def _rename(chat: PlainChat, rest: str) -> bool:
    with chat.context.open_store() as store:
        store.rename(chat.session.id, _needs(rest, "/rename NAME"))
    chat.console.status(f"this session is now '{rest}'")
    return False


def _read(chat: PlainChat, rest: str) -> bool:
    for document in documents(named_paths(split_names(_needs(rest, "/read FILE…")))):
        if read_one(chat.session, document, chat.context, again=False)[1]:
            chat.console.status("stopped; the same command goes on from here")
            return True
    return False


def _regenerate(chat: PlainChat, rest: str) -> bool:
    return chat.say(chat.session.regenerate())


def _continue(chat: PlainChat, rest: str) -> bool:
    return chat.say(chat.session.continue_answer())


def _edit(chat: PlainChat, rest: str) -> bool:
    said = [message for message in chat.session.messages() if message.role == "user"]
    if not said:
        raise UsageError("there is no message to edit yet")
    return chat.say(chat.session.edit(said[-1].id, _needs(rest, "/edit TEXT")))


def _versions(chat: PlainChat, rest: str) -> bool:
    """Without a number: which version of the last answer this is. With one: change to it."""
    messages = chat.session.messages(limit=1)
    versions = chat.session.versions(messages[-1].id) if messages else []
    if not versions:
        raise UsageError("there is no answer yet")
    if rest:
        if not rest.isdigit() or not 1 <= int(rest) <= len(versions):
            raise UsageError(f"'{rest}' is not a version; expected a number from 1 to {len(versions)}")
        chat.session.select(versions[int(rest) - 1])
        messages = chat.session.messages(limit=1)
        chat.console.line(transcript_entry(messages[-1]))
    here = versions.index(messages[-1].id) + 1 if messages[-1].id in versions else 1
    chat.console.status(f"version {here} of {len(versions)}; /version N changes to another one")
    return False


def _history(chat: PlainChat, rest: str) -> bool:
    if rest and not rest.isdigit():
        raise UsageError(f"'{rest}' is not a number of messages; expected one like 10")
    for message in chat.session.messages(limit=int(rest or 10)):
        chat.console.line(transcript_entry(message))
    return False


def _memory(chat: PlainChat, rest: str) -> bool:
    chat.console.line(memory_text(chat.session.memory_report()))
    return False


def _model(chat: PlainChat, rest: str) -> bool:
    if not rest:
        info = chat.session.engine_info
        chat.console.line(f"{info.name}, {info.parameters:,} parameters, {info.dtype} on {info.device}")
        return False
    return chat.switch_model(rest)


def _export(chat: PlainChat, rest: str) -> bool:
    file = Path(_needs(rest, "/export FILE.md"))
    with chat.context.open_store() as store:
        write_text(file, store.export_session(chat.session.id, format_for(file.name)))
    chat.console.status(f"wrote {file}")
    return False


SLASH_COMMANDS = (
    SlashCommand("help", "", "this list", _help),
    SlashCommand("continue", "", "go on with an answer that was stopped or reached its limit", _continue),
    SlashCommand("regenerate", "", "another answer to the same message", _regenerate),
    SlashCommand("edit", "TEXT", "say TEXT instead of your last message", _edit),
    SlashCommand("version", "[N]", "which of several answers this is; change to the N-th", _versions),
    SlashCommand("read", "FILE…", "let the model read documents", _read),
    SlashCommand("memory", "", "what the memory holds", _memory),
    SlashCommand("history", "[N]", "the last N messages again", _history),
    SlashCommand("search", "WORDS", "every message with these words, in all sessions", _search),
    SlashCommand("sessions", "[TEXT]", "the sessions", _sessions),
    SlashCommand("open", "NAME", "go to another session", _open),
    SlashCommand("new", "[NAME]", "start a new session", _new),
    SlashCommand("rename", "NAME", "give this session another name", _rename),
    SlashCommand("export", "FILE", "this session as JSON, or Markdown when FILE ends in .md", _export),
    SlashCommand("model", "[NAME]", "which model this is; change to another one", _model),
    SlashCommand("quit", "", "leave", _quit),
)

_BY_NAME = {command.name: command for command in SLASH_COMMANDS} | {"exit": SLASH_COMMANDS[-1]}
