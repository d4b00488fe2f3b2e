"""Opening a session: find or make it, take its lock, recover what a crash left, load its model."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from infinichat.config import Settings, load_settings
from infinichat.errors import ModelNotFoundError, UsageError
from infinichat.paths import Paths, default_paths
from infinichat.protocols import Engine
from infinichat.session.chat import ChatSession
from infinichat.session.recovery import recover
from infinichat.store import SessionRecord, Store


def open_session(
    name: str | None = None,
    *,
    model: str | None = None,
    new: bool = False,
    system: str | None = None,
    engine: Engine | None = None,
    paths: Paths | None = None,
    settings: Settings | None = None,
    store: Store | None = None,
) -> ChatSession:
    """Open a session by name or id; one that does not exist is made.

    Args:
        name: ``None`` is the session used last, or a new one when there is none.
        model: checkpoint name or path; ``None`` is the one the session used last, else the settings' one.
        new: always make a new session; a name that is taken is an error then.
        system: the system text; only for a session without messages. ``""`` is none at all, ``None`` the
            model's default.
        engine: use this one, which stays the caller's; otherwise one is loaded, which imports torch.
        store: use this one, which stays the caller's; otherwise ``paths`` is opened.

    Raises ``SessionLockedError`` when another process has it open, ``UsageError``, ``ModelError``,
    ``StoreError``.
    """
    paths = paths or (store.paths if store is not None else default_paths())
    settings = settings or load_settings(paths)
    with contextlib.ExitStack() as undo:
        opened = store or undo.enter_context(
            Store.open(paths, keep_deleted_days=settings.store.keep_deleted_days)
        )
        record = None if new else _existing(opened, name)
        loaded: Engine | None = None
        if record is None:
            # The engine first: when it cannot be loaded, no empty session is left behind.
            if engine is None:
                loaded = undo.enter_context(
                    contextlib.closing(_load(model or settings.model, settings, paths))
                )
            used = engine or loaded
            assert used is not None
            record = opened.create_session(name, system=system, model=_model_name(model, used))
            lock = undo.enter_context(opened.lock(record.id))
        else:
            lock = undo.enter_context(opened.lock(record.id))
            recover(opened, record.id)
            record = _with_system(opened, opened.session(record.id), system)
            if engine is None:
                wanted = model or record.model or settings.model
                loaded = undo.enter_context(
                    contextlib.closing(_load(wanted, settings, paths, session=record))
                )
            used = engine or loaded
            assert used is not None
            opened.set_model(record.id, _model_name(model, used))
            opened.touch(record.id)
        session = ChatSession(
            opened,
            record,
            engine=used,
            lock=lock,
            sampling=settings.sampling,
            owns_engine=loaded is not None,
            owns_store=store is None,
        )
        undo.pop_all()
        return session


def _existing(store: Store, name: str | None) -> SessionRecord | None:
    return store.last_session() if name is None else store.find_session(name)


def _model_name(asked: str | None, engine: Engine) -> str:
    """What to load next time: what was asked for, else what the engine calls itself. A path is made absolute,
    because the next start may be in another folder."""
    if asked is None:
        return engine.info.name
    is_path = os.sep in asked or "/" in asked or asked.startswith((".", "~")) or asked.endswith(".gguf")
    return (
        str(Path(asked).expanduser().absolute()) if is_path and Path(asked).expanduser().exists() else asked
    )


def _with_system(store: Store, record: SessionRecord, system: str | None) -> SessionRecord:
    if system is None or system == record.system:
        return record
    if record.tip is not None:
        raise UsageError(
            f"The session {record.name!r} has messages that were said under another system text. It cannot "
            "be changed any more. Next: start a new session with it."
        )
    store.set_system(record.id, system)
    return store.session(record.id)


def _load(
    model: str | None, settings: Settings, paths: Paths, *, session: SessionRecord | None = None
) -> Engine:
    from infinichat.engine.load import load_engine

    try:
        return load_engine(model, settings, cache=paths.cache)
    except ModelNotFoundError as error:
        if session is None or session.model != model:
            raise
        raise ModelNotFoundError(
            f"The session {session.name!r} was last used with the checkpoint {model!r}: {error} "
            "Or choose another one with --model NAME; the session is streamed into it again."
        ) from error
