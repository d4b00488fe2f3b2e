"""Every exception that infinichat raises on purpose, in one tree.

A message is one or two sentences: the value got, the value expected, the next step. The command line
prints it to stderr and exits with ``exit_status``; the app shows it in the conversation. Anything that is
not an ``InfiniChatError`` is a bug and is logged with its traceback.

    InfiniChatError
    ├── UsageError                 wrong arguments (exit status 2)
    ├── ConfigError                a settings file or model configuration that cannot be used
    ├── ModelError
    │   ├── ModelNotFoundError     no checkpoint of that name or path
    │   ├── ModelFileError         truncated, altered or unreadable weights
    │   ├── UnsupportedModelError  a family, tensor type or file format that is not handled
    │   └── DownloadError          pull did not finish
    ├── StateError                 a model state that does not fit its model
    ├── StoreError
    │   ├── SessionNotFoundError
    │   ├── SessionLockedError     another process has the session open
    │   ├── DatabaseError          corrupt, unreadable or made by a newer version
    │   ├── DiskError              disk full, read-only folder
    │   └── SnapshotError          missing, damaged, other format or other model
    └── CancelledError             the user stopped the work; not a failure
"""

from __future__ import annotations


class InfiniChatError(Exception):
    """Base of all errors with a message meant for the user."""

    exit_status: int = 1


class UsageError(InfiniChatError):
    """The arguments are wrong; the command line exits with status 2."""

    exit_status = 2


class ConfigError(InfiniChatError):
    """A settings file, environment variable or model configuration cannot be used."""


class ModelError(InfiniChatError):
    """A checkpoint cannot be found, read or used."""


class ModelNotFoundError(ModelError):
    """No checkpoint has this name or path."""


class ModelFileError(ModelError):
    """A weights file is truncated, altered or unreadable."""


class UnsupportedModelError(ModelError):
    """The model family, tensor type or file format is not handled."""


class DownloadError(ModelError):
    """Fetching a checkpoint did not finish."""


class StateError(InfiniChatError):
    """A model state does not fit the model it is given to."""


class StoreError(InfiniChatError):
    """Something on disk stands in the way."""


class SessionNotFoundError(StoreError):
    """No session has this name or id."""


class SessionLockedError(StoreError):
    """Another process has the session open."""


class DatabaseError(StoreError):
    """The database is corrupt, unreadable or made by a newer version."""


class DiskError(StoreError):
    """The disk is full or the folder cannot be written."""


class SnapshotError(StoreError):
    """A snapshot is missing, damaged, of another format or of another model."""


class CancelledError(InfiniChatError):
    """The user stopped the work. Not a failure: callers keep what was done."""
