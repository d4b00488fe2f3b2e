"""Conversations that never lose a word or a state: messages and streams of events over store and engine.

    with open_session("notes") as session:
        for event in session.send("My dog is called Biscuit."):
            ...

Knows no screen. A reader of this package begins with ``chat.py`` (one turn from beginning to end), then
``keeper.py`` (the state), ``route.py`` (what is fed for a message), ``answering.py``, ``continuing.py``,
``reading.py`` and ``recovery.py`` (what a crash left).
"""

from __future__ import annotations

from infinichat.session.chat import ChatSession
from infinichat.session.opening import open_session
from infinichat.session.reading import PendingDocument
from infinichat.session.recovery import recover_interrupted

__all__ = ["ChatSession", "PendingDocument", "open_session", "recover_interrupted"]
