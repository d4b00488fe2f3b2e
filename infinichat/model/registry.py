"""The list of models that a user can choose, and whether each is ready, without importing torch.

A *checkpoint* is a folder with a ``config.json`` of model type "infini"; its base weights may be elsewhere,
pinned by size and SHA-256 under "base". A plain Hugging Face folder or a GGUF file is a model too: it runs
with a window and an untrained, closed memory. They are found in three places, in this order::

    the checkpoints shipped with infinichat     models/<name>/
    the user's folder (paths.models)            <name>/ or <name>.gguf; base/ holds pulled base weights
    anywhere                                    by path

``loading.py`` turns an entry into a model; ``pull.py`` fetches what an entry lacks.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from infinichat.errors import DiskError, InfiniChatError, ModelNotFoundError, UsageError
from infinichat.model.base_weights import BaseWeights, check_own_files, read_config
from infinichat.model.card import description_of, parameters_of, recall_of
from infinichat.model.gguf_file import check_extents, read_gguf_header
from infinichat.model.pull import OnProgress
from infinichat.model.safetensors_file import check_safetensors, refuse_pickle, weight_files
from infinichat.paths import Paths, bundled_models, default_paths
from infinichat.protocols import CancelFlag

DEFAULT_CHECKPOINT = "smollm2-135m-infini"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model. ``installed`` says that its base weights are on this machine, with the right size.

    ``path`` is the folder or GGUF file, ``size_bytes`` everything it needs on disk (base weights included,
    also while they are not here), ``parameters`` ``None`` where a file cannot tell, ``recall`` the measured
    recall from its card (``recall.json``) or ``None``. ``default`` marks the one that is used when none is
    named; ``problem`` says in a sentence why a model in the user's folder cannot be used.
    """

    name: str
    path: Path
    kind: Literal["checkpoint", "folder", "gguf"]
    installed: bool
    trained: bool
    size_bytes: int
    parameters: int | None
    description: str
    recall: dict[str, Any] | None
    default: bool
    bundled: bool = False
    problem: str | None = None


class Registry:
    """Lists, resolves, fetches, checks and removes models. Reads the disk anew with every call."""

    def __init__(
        self,
        paths: Paths | None = None,
        *,
        default: str | None = None,
        bundled: tuple[Path, ...] | None = None,
    ) -> None:
        """``default`` is the user's chosen model (name or path), ``bundled`` the folders with the shipped
        ones."""
        self.paths = paths or default_paths()
        self.default = default or DEFAULT_CHECKPOINT
        self.base = BaseWeights(self.paths)
        self._bundled = bundled_models() if bundled is None else bundled

    def entries(self) -> list[Entry]:
        """Every model in the shipped and the user's folder, the default one first, then by name. One that
        cannot be read is listed with its ``problem``."""
        found: dict[str, Entry] = {}
        for path, bundled in self._candidates():
            name = _name_of(path)
            if name in found:
                continue
            try:
                found[name] = self._entry(path, bundled=bundled)
            except InfiniChatError as error:
                found[name] = self._broken(path, bundled, str(error))
        return sorted(found.values(), key=lambda entry: (not entry.default, entry.name))

    def entry(self, ref: str | Path | None = None) -> Entry:
        """The model of this name or path; without one the default.

        Raises ``ModelNotFoundError`` naming what is there, ``ModelFileError`` or ``UnsupportedModelError``
        for a path that is no model.
        """
        wanted = str(ref) if ref is not None else self.default
        names = []
        for path, bundled in self._candidates():
            names.append(_name_of(path))
            if names[-1] == wanted:
                return self._entry(path, bundled=bundled)
        path = Path(wanted).expanduser()
        if path.exists():
            return self._entry(path.absolute(), bundled=False)
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or sorted(names)
        known = f"Did you mean {', '.join(near)}? " if near else ""
        raise ModelNotFoundError(
            f"There is no model {wanted!r}, neither of that name nor at that path. {known}See `infinichat "
            "models list`."
        )

    def base_weights(self, ref: str | Path | None = None, *, on_progress: OnProgress | None = None) -> Path:
        """The checked file (GGUF) or folder (safetensors) with the weights that ``ref`` is built on.

        Raises ``ModelNotFoundError`` with the next step when they are not on this machine, ``ModelFileError``
        when they are another file than the pinned one.
        """
        entry = self.entry(ref)
        if entry.kind != "checkpoint":
            return entry.path
        return self.base.find(entry.name, entry.path, on_progress=on_progress)

    def pull(
        self,
        ref: str | Path | None = None,
        *,
        on_progress: OnProgress | None = None,
        cancel: CancelFlag | None = None,
    ) -> Entry:
        """Fetch what ``ref`` lacks; returns its entry, installed. Nothing is fetched when nothing is missing.

        Raises what ``entry`` and ``pull.pull_base`` raise.
        """
        entry = self.entry(ref)
        if entry.kind != "checkpoint":
            return entry
        self.base.pull(entry.name, entry.path, on_progress=on_progress, cancel=cancel)
        return self.entry(ref)

    def use(self, ref: str | Path) -> Entry:
        """The entry of ``ref`` if it can be loaded now; the caller writes it into the settings.

        Raises ``ModelNotFoundError`` naming the pull command when its base weights are missing.
        """
        entry = self.entry(ref)
        self.base_weights(entry.path)
        return entry

    def remove(self, ref: str | Path) -> int:
        """Delete a model of the user's folder, or the pulled base weights of a shipped one, and return the
        bytes freed. Base weights that another installed model needs stay. Raises ``UsageError`` for a model
        outside the user's folder, which is never touched, ``DiskError`` when something cannot be deleted."""
        entry = self.entry(ref)
        doomed = list(self._own_base(entry))
        if not entry.bundled:
            if entry.path.parent != self.paths.models:
                raise UsageError(
                    f"{entry.path} is not in {self.paths.models}; only models there are removed. Delete it "
                    "yourself."
                )
            doomed.append(entry.path)
        freed = 0
        for path in doomed:
            freed += _bytes_under(path)
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError as error:
                raise DiskError(
                    f"Cannot delete {path}: {error.strerror or error}. Check the folder's permissions."
                ) from error
        return freed

    def verify(self, ref: str | Path | None = None, *, on_progress: OnProgress | None = None) -> list[str]:
        """Read every byte of ``ref`` (of all installed models without one) and return what is wrong, one
        sentence each; empty when all is well."""
        entries = [self.entry(ref)] if ref is not None else self.entries()
        problems: list[str] = []
        for entry in entries:
            if entry.problem is not None:
                problems.append(entry.problem)
            elif entry.installed or ref is not None:
                problems += self._verify(entry, on_progress)
        return problems

    def _verify(self, entry: Entry, on_progress: OnProgress | None) -> Iterator[str]:
        checks: list[Callable[[], object]] = []
        if entry.kind == "checkpoint":
            checks.append(partial(check_own_files, entry.path))
        self.base.forget_checks()
        checks.append(lambda: self._verify_weights(self.base_weights(entry.path, on_progress=on_progress)))
        for check in checks:
            try:
                check()
            except InfiniChatError as error:
                yield f"{entry.name}: {error}"

    def _verify_weights(self, weights: Path) -> None:
        if weights.is_file():
            check_extents(read_gguf_header(weights))
        else:
            for file in weight_files(weights):
                check_safetensors(file)

    def _candidates(self) -> Iterator[tuple[Path, bool]]:
        for folder in self._bundled:
            for path in _children(folder):
                if (path / "config.json").is_file():
                    yield path, True
        for path in _children(self.paths.models):
            if path == self.base.folder:
                continue
            if path.suffix.lower() == ".gguf" or (path / "config.json").is_file():
                yield path, False

    def _is_default(self, name: str, path: Path) -> bool:
        return self.default in (name, str(path))

    def _entry(self, path: Path, *, bundled: bool) -> Entry:
        name = _name_of(path)
        plain = Entry(
            name=name,
            path=path,
            kind="gguf",
            installed=True,
            trained=False,
            size_bytes=0,
            parameters=None,
            description="",
            recall=None,
            default=self._is_default(name, path),
            bundled=bundled,
        )
        if path.is_file():
            refuse_pickle(path)
            header = read_gguf_header(path)
            title = str(header.metadata.get("general.name", "")) or name
            return replace(
                plain,
                size_bytes=header.size,
                parameters=header.parameters,
                description=f"{title} (GGUF, memory not trained)",
            )
        config = read_config(path)
        entry = replace(
            plain,
            kind="checkpoint" if config.get("model_type") == "infini" else "folder",
            size_bytes=_bytes_under(path),
            parameters=parameters_of(config),
            description=description_of(path) or f"{config.get('model_type')} folder, memory not trained",
            recall=recall_of(path),
        )
        if entry.kind == "folder":
            return entry
        installed, base_bytes = self.base.status(config, path)
        return replace(
            entry,
            trained=bool(config.get("memory_trained")),
            installed=installed,
            size_bytes=entry.size_bytes + base_bytes,
        )

    def _broken(self, path: Path, bundled: bool, problem: str) -> Entry:
        return Entry(
            name=_name_of(path),
            path=path,
            kind="gguf" if path.is_file() else "folder",
            installed=False,
            trained=False,
            size_bytes=_bytes_under(path),
            parameters=None,
            description="cannot be read",
            recall=None,
            default=self._is_default(_name_of(path), path),
            bundled=bundled,
            problem=problem,
        )

    def _own_base(self, entry: Entry) -> Iterator[Path]:
        """The pulled base weights that nothing else needs once ``entry`` is gone."""
        if entry.kind != "checkpoint":
            return
        file = self.base.pulled(entry.path)
        if file is None or not file.is_file():
            return
        others = (
            other for other in self.entries() if other.kind == "checkpoint" and other.path != entry.path
        )
        if all(self.base.pulled(other.path) != file for other in others if other.problem is None):
            yield file


def _name_of(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DiskError(f"Cannot list {folder}: {error.strerror or error}. Check its permissions.") from error


def _bytes_under(path: Path) -> int:
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
