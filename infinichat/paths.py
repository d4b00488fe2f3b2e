"""Where things are on disk. Pure functions: nothing here creates a folder.

``INFINICHAT_HOME`` moves everything that is written under one folder; otherwise the platform's own folders
are used (on Linux ``~/.local/share/infinichat``, ``~/.config/infinichat``, ``~/.cache/infinichat``).

    data/   infinichat.db, snapshots/, locks/, models/, backups/
    config/ settings.toml, keymap.toml
    cache/  what can be made again (compiled kernels, timings of this machine)
    state/  log, prompt history
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

APP = "infinichat"


@dataclass(frozen=True, slots=True)
class Paths:
    """The four roots and what lies under them."""

    data: Path
    config: Path
    cache: Path
    state: Path

    @property
    def database(self) -> Path:
        return self.data / "infinichat.db"

    @property
    def snapshots(self) -> Path:
        return self.data / "snapshots"

    @property
    def locks(self) -> Path:
        return self.data / "locks"

    @property
    def models(self) -> Path:
        """Checkpoints that the user made or pulled."""
        return self.data / "models"

    @property
    def backups(self) -> Path:
        return self.data / "backups"

    @property
    def settings(self) -> Path:
        return self.config / "settings.toml"

    @property
    def keymap(self) -> Path:
        return self.config / "keymap.toml"

    @property
    def log(self) -> Path:
        return self.state / "infinichat.log"

    @property
    def history(self) -> Path:
        return self.state / "history.jsonl"


def default_paths() -> Paths:
    """The folders for this user, or those under ``INFINICHAT_HOME`` when it is set and not empty."""
    home = os.environ.get("INFINICHAT_HOME", "").strip()
    if home:
        root = Path(home).expanduser().absolute()
        return Paths(root / "data", root / "config", root / "cache", root / "state")
    return Paths(
        Path(platformdirs.user_data_dir(APP, appauthor=False)),
        Path(platformdirs.user_config_dir(APP, appauthor=False)),
        Path(platformdirs.user_cache_dir(APP, appauthor=False)),
        Path(platformdirs.user_state_dir(APP, appauthor=False)),
    )


def bundled_models() -> tuple[Path, ...]:
    """Folders that may hold the checkpoints shipped with infinichat: in the installed package, and beside it
    in a checkout of the repository."""
    package = Path(__file__).resolve().parent
    return (package / "bundled_models", package.parent / "models")
