"""infinichat: a local chat in the terminal whose model never runs out of context.

Importing this package imports neither torch nor textual; public names are resolved on first use::

    from infinichat import open_session
    with open_session("notes") as session:
        for event in session.send("My dog is called Biscuit."):
            ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ChatSession": "infinichat.session",
    "open_session": "infinichat.session",
    "InfiniChatError": "infinichat.errors",
    "Message": "infinichat.messages",
    "SamplingOptions": "infinichat.messages",
    "TextDelta": "infinichat.messages",
    "TurnFinished": "infinichat.messages",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from infinichat.errors import InfiniChatError as InfiniChatError
    from infinichat.messages import Message as Message
    from infinichat.messages import SamplingOptions as SamplingOptions
    from infinichat.messages import TextDelta as TextDelta
    from infinichat.messages import TurnFinished as TurnFinished
    from infinichat.session import ChatSession as ChatSession
    from infinichat.session import open_session as open_session


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'infinichat' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
