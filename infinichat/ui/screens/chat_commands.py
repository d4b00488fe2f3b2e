"""What the slash commands and the keys on a message do. One method a command: ``command_<name>(rest)``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.config import parse_value, setting_keys
from infinichat.errors import InfiniChatError, UsageError
from infinichat.messages import Message
from infinichat.text.documents import named_paths, split_names
from infinichat.text.harmless import visible
from infinichat.ui import external_editor
from infinichat.ui.commands import parse
from infinichat.ui.turns import options
from infinichat.ui.widgets.entry import AnswerEntry, Entry, fences
from infinichat.ui.widgets.transcript import Act

if TYPE_CHECKING:
    from infinichat.store import SessionRecord
    from infinichat.ui.screens.chat import ChatScreen


class ChatCommands:
    """The commands of one chat screen."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self.choices: dict[str, Callable[[], Sequence[tuple[str, str]]]] = {
            "open": self._session_choices,
            "theme": lambda: [(name, "") for name in sorted(screen.app.available_themes)],
            "copy": lambda: [("code", "the last code in the last answer"), ("all", "the whole session")],
            "set": self._set_choices,
        }

    def __repr__(self) -> str:
        return f"ChatCommands({self._screen.session_id!r})"

    async def run(self, line: str) -> None:
        """Run "/name rest". A mistake is said in the conversation, and the line returns to the prompt."""
        try:
            command, rest = parse(line)
            await getattr(self, f"command_{command.name}")(rest)
        except UsageError as error:
            self._screen.give_back(line)
            await self._screen.fail(error)
        except InfiniChatError as error:
            await self._screen.fail(error)

    # -- keys on a message

    async def act(self, act: Act, entry: Entry) -> None:
        """A key was pressed on an entry of the transcript."""
        try:
            match act:
                case "copy":
                    self._copy(entry.text, "message")
                case "copy_code":
                    self._copy_code(entry)
                case "edit" if entry.message is not None and entry.message.role == "user":
                    await self._edit(entry.message)
                case "regenerate":
                    await self.command_regenerate("")
                case "branch" if entry.message is not None:
                    await self._branch(entry.message, None)
                case _:
                    self._screen.app.bell()
        except InfiniChatError as error:
            await self._screen.fail(error)

    async def turn(self, message: Message, step: int) -> None:
        """Go to the version of a message before or after it."""
        number, count = self._screen.position(message)
        if not 1 <= number + step <= count or not await self._idle():
            self._screen.app.bell()
            return
        ids = self._screen.store.versions(message.id, self._screen.session_id)
        self._screen.turns.select(ids[number + step - 1])

    # -- sessions

    async def command_new(self, rest: str) -> None:
        info = self._screen.engine_info
        record = self._screen.store.create_session(rest or None, model=info.name if info else None)
        await self._screen.open(record)

    async def command_open(self, rest: str) -> None:
        await self._screen.open(self._screen.store.session(rest))

    async def command_sessions(self, rest: str) -> None:
        # The lists are screens of their own; importing them here keeps them out of the first paint.
        from infinichat.ui.screens.sessions import SessionsScreen

        screen = self._screen
        screen.app.push_screen(SessionsScreen(screen.services, screen.session_id, rest), self._chosen)

    async def command_search(self, rest: str) -> None:
        await self.command_sessions(rest)

    async def _chosen(self, choice: tuple[SessionRecord, str | None] | None) -> None:
        if choice is not None:
            await self._screen.open(choice[0], message_id=choice[1])
        elif self._screen.store.find_session(self._screen.session_id) is None:
            # This very session was deleted in the list.
            record = self._screen.store.last_session() or self._screen.store.create_session()
            await self._screen.open(record)
        self._screen.refresh_session()

    async def command_rename(self, rest: str) -> None:
        self._screen.store.rename(self._screen.session_id, rest)
        self._screen.store.set_title(self._screen.session_id, rest)
        self._screen.refresh_session()

    async def command_pin(self, rest: str) -> None:
        self._screen.store.set_pinned(self._screen.session_id, not self._screen.record.pinned)
        self._screen.refresh_session()

    async def command_branch(self, rest: str) -> None:
        tail = self._screen.store.path(self._screen.session_id, limit=1)
        if not tail:
            raise UsageError("There is nothing to branch from yet. Next: say something first.")
        await self._branch(tail[-1], rest or None)

    async def _branch(self, message: Message, name: str | None) -> None:
        if not await self._idle():
            return
        screen = self._screen
        record = screen.store.branch(screen.session_id, message.id, name)
        source = screen.record.name
        await screen.open(record)
        await screen.say(f"This session goes on from a message of '{source}', which stays as it was.")

    async def command_export(self, rest: str) -> None:
        record = self._screen.record
        safe = "".join(c if c.isalnum() or c in "-_ " else "-" for c in record.name).strip() or "session"
        file = Path(rest).expanduser() if rest else _free(Path(f"{safe}.md"))
        text = self._screen.store.export_session(record.id, "json" if file.suffix == ".json" else "markdown")
        if rest and file.exists():
            raise UsageError(f"'{file}' exists already. Next: choose another name.")
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InfiniChatError(
                f"'{file}' cannot be written ({error.strerror}). Next: choose another."
            ) from error
        await self._screen.say(f"Wrote {file.absolute()}")

    async def command_import(self, rest: str) -> None:
        path = named_paths(split_names(rest))[0]
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"'{path}' cannot be read as text ({error}). Expected: an exported JSON file."
            ) from error
        await self._screen.open(self._screen.store.import_session(text))

    # -- the conversation

    async def command_read(self, rest: str) -> None:
        self._screen.turns.read(named_paths(split_names(rest)))

    async def command_regenerate(self, rest: str) -> None:
        tail = self._screen.store.path(self._screen.session_id, limit=1)
        if not tail or tail[-1].role not in ("assistant", "user"):
            raise UsageError("There is no answer to make again. Next: say something first.")
        if await self._idle():
            self._screen.turns.regenerate(tail[-1])

    async def command_continue(self, rest: str) -> None:
        tail = self._screen.store.path(self._screen.session_id, limit=1)
        if not tail or tail[-1].role != "assistant" or tail[-1].reason in ("stop", "complete"):
            raise UsageError("The last answer is complete. Next: /regenerate makes another one.")
        if await self._idle():
            self._screen.turns.go_on(tail[-1])

    async def command_edit(self, rest: str) -> None:
        said = [m for m in self._screen.store.path(self._screen.session_id, limit=20) if m.role == "user"]
        if not said:
            raise UsageError("There is no message of yours to edit yet.")
        if not rest:
            await self._edit(said[-1])
        elif await self._idle():
            await self._screen.turns.edit(said[-1], rest)

    async def _edit(self, message: Message) -> None:
        from infinichat.ui.screens.dialogs import TextDialog

        if not await self._idle():
            return

        async def resend(text: str | None) -> None:
            if text is not None and text.strip() and text != message.content:
                await self._screen.turns.edit(message, text)

        dialog = TextDialog(
            "Edit your message", message.content, "The old version and what followed it stay: ‹ 1/2 ›"
        )
        self._screen.app.push_screen(dialog, resend)

    async def command_system(self, rest: str) -> None:
        screen = self._screen
        if not rest:
            text = screen.record.system
            await screen.say(
                f"System prompt: {text}" if text else "The checkpoint's own system prompt is used."
            )
            return
        if screen.record.messages:
            info = screen.engine_info
            record = screen.store.create_session(None, system=rest, model=info.name if info else None)
            await screen.open(record)
            await screen.say(
                "A system prompt is the first thing a memory sees, so this is a new session with it."
            )
            return
        screen.store.set_system(screen.session_id, rest)
        screen.refresh_session()
        await screen.say(f"System prompt: {rest}")

    async def command_set(self, rest: str) -> None:
        if rest:
            key, _, value = rest.replace("=", " ").partition(" ")
            key = key.removeprefix("sampling.")
            self._screen.set_sampling(key, parse_value(f"sampling.{key}", value.strip(), source="/set"))
        await self._screen.say(options(self._screen.sampling))

    # -- copying and writing

    async def command_copy(self, rest: str) -> None:
        if rest == "all":
            text = self._screen.store.export_session(self._screen.session_id, "markdown")
            self._copy(text, "session")
            return
        answers = [e for e in self._screen.transcript.entries if isinstance(e, AnswerEntry) and e.text]
        if not answers:
            raise UsageError("There is no answer to copy yet.")
        if rest == "code":
            self._copy_code(answers[-1])
        else:
            self._copy(answers[-1].text, "answer")

    def _copy_code(self, entry: Entry) -> None:
        blocks = fences(entry.text)
        if not blocks:
            raise UsageError("There is no code block in this message.")
        self._copy(blocks[-1], "code")

    def _copy(self, text: str, what: str) -> None:
        self._screen.app.copy_to_clipboard(text)
        self._screen.notify(f"Copied the {what}, {len(text):,} characters", timeout=2, markup=False)

    async def command_editor(self, rest: str) -> None:
        prompt = self._screen.prompt
        with self._screen.app.suspend():
            text = external_editor.edit(prompt.text, environ=os.environ)
        prompt.set_text(text.rstrip("\n"))
        prompt.focus()

    # -- the app

    async def command_model(self, rest: str) -> None:
        if rest:
            if await self._idle():
                self._screen.turns.load(rest)
            return
        from infinichat.ui.screens.models import ModelsScreen

        screen = self._screen
        current = screen.engine_info.name if screen.engine_info else None
        screen.app.push_screen(ModelsScreen(screen.services, current), self._model_chosen)

    async def _model_chosen(self, name: str | None) -> None:
        if name is not None and await self._idle():
            self._screen.turns.load(name)

    async def command_memory(self, rest: str) -> None:
        from infinichat.ui.screens.memory import MemoryScreen

        self._screen.app.push_screen(MemoryScreen(self._screen))

    async def command_help(self, rest: str) -> None:
        from infinichat.ui.screens.help import HelpScreen

        self._screen.app.push_screen(HelpScreen())

    async def command_theme(self, rest: str) -> None:
        app = self._screen.app
        if not rest:
            app.search_themes()
        elif rest in app.available_themes:
            app.theme = rest
        else:
            raise UsageError(
                f"There is no theme '{visible(rest)}'. Expected one of: {', '.join(app.available_themes)}."
            )

    async def command_quit(self, rest: str) -> None:
        await self._screen.app.action_quit()

    # -- helpers

    async def _idle(self) -> bool:
        """Whether nothing runs; otherwise says what to do."""
        if not self._screen.turns.busy:
            return True
        await self._screen.say("Something is still being answered or read. Esc stops it.")
        return False

    def _session_choices(self) -> list[tuple[str, str]]:
        return [(r.name, r.title or "") for r in self._screen.store.sessions(limit=200)]

    def _set_choices(self) -> list[tuple[str, str]]:
        names = [key.removeprefix("sampling.") for key in setting_keys() if key.startswith("sampling.")]
        return [(name, f"now {getattr(self._screen.sampling, name)}") for name in names]


def _free(file: Path) -> Path:
    """``file``, or the first "name-2.md" that does not exist."""
    number, candidate = 2, file
    while candidate.exists():
        candidate = file.with_stem(f"{file.stem}-{number}")
        number += 1
    return candidate
