"""The Textual app around the chat screen, and ``run_app``, which the command line calls.

It makes the services (store, worker, history), owns themes, key map and clipboard, and ends cleanly: the
answer that streams is stopped and kept, the worker is joined, and only then does Python leave. Importing
this module imports no torch and makes no file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import tomllib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.message import Message as TextualMessage
from textual.screen import Screen

from infinichat.config import Settings, load_settings, save_setting
from infinichat.errors import ConfigError, InfiniChatError
from infinichat.paths import Paths
from infinichat.protocols import Engine
from infinichat.store import SessionRecord, Store
from infinichat.ui import clipboard
from infinichat.ui.catalog import ModelCatalog, RegistryCatalog
from infinichat.ui.commands import COMMANDS
from infinichat.ui.history import PromptHistory
from infinichat.ui.palette import DARK, LIGHT
from infinichat.ui.screens.chat import ChatScreen
from infinichat.ui.services import Services
from infinichat.ui.terminal_keys import teach_alt_enter
from infinichat.ui.worker import LoadEngine, Progress, SessionWorker

if TYPE_CHECKING:
    from infinichat.session import ChatSession

log = logging.getLogger(__name__)

_LONGEST_LOG = 1_000_000  # bytes


class InfiniChatApp(App[None]):
    """See the module. Everything it works with is in ``services``."""

    TITLE = "infinichat"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", priority=True, id="quit"),
    ]

    def __init__(self, services: Services, session: SessionRecord, *, model: str | None = None) -> None:
        super().__init__()
        self.services = services
        self.chat = ChatScreen(services, session)
        self.chat.want_model(model)
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self._theme_chosen = False

    def get_default_screen(self) -> Screen[None]:
        return self.chat

    def on_mount(self) -> None:
        wanted = self.services.settings.ui.theme
        self.theme = wanted if wanted in self.available_themes else DARK.name
        self._theme_chosen = True
        self.set_keymap(load_keymap(self.services.paths))
        self.services.worker.start()

    def watch_theme(self, theme: str) -> None:
        if self._theme_chosen:
            self.run_worker(lambda: self._save_theme(theme), thread=True, exit_on_error=False)

    def _save_theme(self, theme: str) -> None:
        try:
            save_setting(self.services.paths, "ui.theme", theme)
        except InfiniChatError as error:
            self.call_from_thread(self.notify, str(error), severity="warning", markup=False)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every slash command that needs no arguments, and Textual's own."""
        if screen is self.chat:
            for command in COMMANDS:
                if not command.required and command.name not in ("theme", "quit"):
                    yield SystemCommand(
                        command.name.capitalize(),
                        command.help,
                        lambda name=command.name: self.call_later(self.chat.action_run, name),
                    )
        yield from super().get_system_commands(screen)

    def copy_to_clipboard(self, text: str) -> None:
        super().copy_to_clipboard(text)
        threading.Thread(target=clipboard.copy, args=(text,), kwargs={"environ": os.environ}).start()

    def action_help_quit(self) -> None:
        """Ctrl+C with nothing selected: stop what runs, else empty the prompt, else say how to quit."""
        if self.screen is self.chat and self.chat.turns.stop():
            return
        if self.screen is self.chat and self.chat.prompt.text:
            self.chat.prompt.set_text("")
            return
        self.notify("Ctrl+Q leaves; everything is saved.", timeout=3, markup=False)


def load_keymap(paths: Paths) -> dict[str, str]:
    """``keymap.toml``: a table from binding ids ("sessions") to keys ("f2,ctrl+s"). Empty when there is
    none."""
    try:
        table = tomllib.loads(paths.keymap.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is not used: %s", paths.keymap, error)
        return {}
    return {str(key): value for key, value in table.items() if isinstance(value, str)}


def run_app(
    *,
    session: str | None = None,
    new: bool = False,
    model: str | None = None,
    system: str | None = None,
    paths: Paths,
    settings: Settings | None = None,
    load_engine: LoadEngine | None = None,
    catalog: ModelCatalog | None = None,
) -> int:
    """Open the app and return the exit status when the user leaves.

    Args:
        session: name or id of the session to open; made when there is none. Without it the last one.
        new: a new session instead.
        model: a checkpoint's name or path; without it the session's own or the default one.
        system: the system prompt of a new session.
        load_engine: makes the engine; the real one is imported on the worker thread.
        catalog: the checkpoints that can be chosen.

    Raises ``InfiniChatError`` when the store cannot be opened.
    """
    settings = settings if settings is not None else load_settings(paths)
    handler = _start_log(paths)
    try:
        with Store.open(paths, keep_deleted_days=settings.store.keep_deleted_days) as store:
            record = _choose_session(store, session, new=new, system=system)
            app = make_app(
                store,
                record,
                paths=paths,
                settings=settings,
                model=model or record.model or settings.model,
                load_engine=load_engine or engine_loader(settings),
                catalog=catalog or RegistryCatalog(paths, default=settings.model),
            )
            # Python's own 5 ms is how long a key may wait each time the model's thread has the interpreter.
            sys.setswitchinterval(0.001)
            teach_alt_enter()
            try:
                app.run()
            finally:
                app.services.worker.close(on_wait=_say_finishing)
            return app.return_code or 0
    finally:
        logging.getLogger("infinichat").removeHandler(handler)
        handler.close()


def make_app(
    store: Store,
    record: SessionRecord,
    *,
    paths: Paths,
    settings: Settings,
    model: str | None,
    load_engine: LoadEngine,
    catalog: ModelCatalog,
) -> InfiniChatApp:
    """The app with a worker that opens sessions of ``store``'s database."""

    def open_one(session_id: str, engine: Engine, asked: str | None) -> ChatSession:
        from infinichat.session import open_session

        return open_session(session_id, engine=engine, model=asked, store=store, settings=settings)

    def post(message: TextualMessage) -> object:
        # Once the loop is closed nobody listens; what the worker still does, it does for the disk.
        with contextlib.suppress(RuntimeError):
            return app.chat.post_message(message)
        return False

    worker = SessionWorker(load_engine=load_engine, open_session=open_one, post=post)
    services = Services(
        paths=paths,
        settings=settings,
        store=store,
        worker=worker,
        catalog=catalog,
        history=PromptHistory(paths.history),
    )
    app = InfiniChatApp(services, record, model=model)
    return app


def _say_finishing() -> None:
    print("infinichat: finishing what the model is doing…", file=sys.stderr, flush=True)


def engine_loader(settings: Settings) -> LoadEngine:
    """The real engine, imported when it is needed: this is where torch comes in, on the worker thread."""

    def load(model: str | None, progress: Progress) -> Engine:
        from infinichat.engine.load import load_engine

        def tensors(done: int, total: int) -> None:
            progress("loading", done / total if total else None)

        return load_engine(model, settings, on_progress=tensors)

    return load


def _choose_session(store: Store, name: str | None, *, new: bool, system: str | None) -> SessionRecord:
    if new:
        return store.create_session(name, system=system)
    if name is not None:
        return store.find_session(name) or store.create_session(name, system=system)
    return store.last_session() or store.create_session(system=system)


def _start_log(paths: Paths) -> logging.Handler:
    """Warnings and tracebacks of the app go to a file: the screen belongs to Textual."""
    try:
        paths.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Old news: what is worth reading after a failure is at its end.
        if paths.log.exists() and paths.log.stat().st_size > _LONGEST_LOG:
            paths.log.unlink()
        handler = logging.FileHandler(paths.log, delay=True, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The log's folder {paths.log.parent} cannot be made ({error.strerror}). "
            "Next: set INFINICHAT_HOME."
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger("infinichat").addHandler(handler)
    return handler
