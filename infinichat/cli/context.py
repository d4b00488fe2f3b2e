"""What every command gets: where things are, the settings, the streams, and how to open what it works on.

The engine is made by ``engine_factory`` when there is one (tests pass a scripted engine) and by
``open_session`` itself otherwise, which imports torch at that moment and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infinichat.cli.console import Console
from infinichat.config import Settings, load_settings
from infinichat.errors import ConfigError
from infinichat.paths import Paths
from infinichat.protocols import Engine

if TYPE_CHECKING:
    from infinichat.session import ChatSession
    from infinichat.store import Store

EngineFactory = Callable[[str | None, Settings], Engine]


@dataclass(frozen=True, slots=True)
class Context:
    """One run of the command line."""

    paths: Paths
    console: Console
    engine_factory: EngineFactory | None = None

    def settings(self) -> Settings:
        """The settings as they are now; raises ``ConfigError``.

        Read on use, so that ``doctor`` can say what is wrong with them and ``locate`` works without them.
        """
        return load_settings(self.paths)

    def open_store(self) -> Store:
        """The sessions on disk; the caller closes it (it is a context manager)."""
        from infinichat.store import Store

        try:
            keep_days = self.settings().store.keep_deleted_days
        except ConfigError:
            keep_days = None  # without settings nobody knows what may go
        return Store.open(self.paths, keep_deleted_days=keep_days)

    def load_engine(self, model: str | None, *, dtype: str | None = None) -> Engine:
        """The engine for a checkpoint's name or path; ``None`` is the one in the settings. ``dtype`` instead
        of what the settings say."""
        settings = self.settings()
        if dtype is not None:
            engine: Any = {"dtype": dtype}
            settings = replace(settings, engine=replace(settings.engine, **engine))
        if self.engine_factory:
            return self.engine_factory(model, settings)
        self._offer_to_fetch(model)
        from infinichat.engine.load import load_engine

        return load_engine(model or settings.model, settings)

    def open_session(
        self,
        name: str | None = None,
        *,
        model: str | None = None,
        new: bool = False,
        system: str | None = None,
        engine: Engine | None = None,
    ) -> ChatSession:
        """A session; the caller closes it (it is a context manager).

        Without an engine one is loaded, and closed together with the session.
        """
        from infinichat.session import open_session

        settings = self.settings()
        if engine is None and self.engine_factory:
            engine = self.engine_factory(model, settings)
        elif engine is None:
            self._offer_to_fetch(model)
        return open_session(
            name, model=model, new=new, system=system, engine=engine, paths=self.paths, settings=settings
        )

    def _offer_to_fetch(self, model: str | None) -> None:
        """On a first start, before anything is loaded: ask the person at the keyboard, if there is one."""
        if self.console.stdin.isatty() and self.console.stderr.isatty():
            from infinichat.cli.models import offer_to_fetch

            offer_to_fetch(self, model)
