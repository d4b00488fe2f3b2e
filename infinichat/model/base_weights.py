"""Where a checkpoint's base weights are, and whether they are the pinned ones.

A checkpoint made here holds only what was trained; "base" in its ``config.json`` says what it stands on: one
GGUF pinned by size and SHA-256 (maybe published in a package), or a Hugging Face folder of the user's with
its files pinned. The GGUF is looked for in this order: ``INFINICHAT_BASE_WEIGHTS``, the checkpoint's own
folder, the path it was made from, the folder of pulled weights.

    "base": {"file": "x.gguf", "size": 98362432, "sha256": "...", "package": {"name", "version", "member"}}
    "base": {"file": "x.gguf", "size": 1, "sha256": "...", "path": "/where/it/was/x.gguf"}
    "base": {"folder": "/models/llama", "files": {"model.safetensors": {"size": 1, "sha256": "..."}}}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infinichat.errors import ConfigError, ModelFileError, ModelNotFoundError
from infinichat.model.checksums import check_pinned
from infinichat.model.package_client import Package
from infinichat.model.pull import (
    BaseFile,
    OnProgress,
    PullProgress,
    base_weights_override,
    by_hand,
    pull_base,
)
from infinichat.model.safetensors_file import check_safetensors, has_weights
from infinichat.paths import Paths
from infinichat.protocols import CancelFlag

MEMORY_FILE = "memory.safetensors"
"""What was trained for a checkpoint lies under this name in its folder."""


class BaseWeights:
    """The base weights on this machine. Reads the disk anew with every call."""

    def __init__(self, paths: Paths) -> None:
        self.folder = paths.models / "base"
        """Where pulled base weights are, and where a user may put them by hand."""
        self.stamps = paths.cache / "checked-weights.json"
        """The cache of files whose checksum was right (``checksums.check_pinned``)."""

    def find(self, name: str, checkpoint: Path, *, on_progress: OnProgress | None = None) -> Path:
        """The checked GGUF or folder that ``checkpoint`` (called ``name``) stands on; the checkpoint itself
        when it holds all its weights.

        Raises ``ModelNotFoundError`` with the next step when they are not on this machine, ``ModelFileError``
        when what is there is not the pinned file.
        """
        base = base_of(read_config(checkpoint), checkpoint)
        if base is None:
            return checkpoint
        if base.get("folder") is not None:
            return self._checked_folder(name, base, checkpoint)
        pinned = base_file(base, checkpoint)
        wrong: ModelFileError | None = None
        for place in self._places(pinned, base, checkpoint):
            if not place.is_file():
                continue
            try:
                self._check(place, pinned.size, pinned.sha256, on_progress)
            except ModelFileError as error:
                wrong = wrong or error
            else:
                return place
        if wrong is not None:
            raise wrong
        raise ModelNotFoundError(
            f"The base weights of {name} ({pinned.file}, {pinned.size / 1e6:,.0f} MB) are not on this "
            f"machine. Run `infinichat models pull {name}`, or {by_hand(pinned, self.folder)}"
        )

    def status(self, config: dict[str, Any], checkpoint: Path) -> tuple[bool, int]:
        """Whether the base weights are here, judged by size alone, and how many bytes they have outside of
        the checkpoint's folder."""
        base = base_of(config, checkpoint)
        if base is None:
            return True, 0
        if base.get("folder") is not None:
            folder, pins = Path(base["folder"]), _pins(base, checkpoint)
            here = all(_has_size(folder / file, size) for file, (size, _) in pins.items())
            return here, sum(size for size, _ in pins.values())
        pinned = base_file(base, checkpoint)
        here = any(_has_size(place, pinned.size) for place in self._places(pinned, base, checkpoint))
        return here, 0 if _has_size(checkpoint / pinned.file, pinned.size) else pinned.size

    def pull(
        self,
        name: str,
        checkpoint: Path,
        *,
        on_progress: OnProgress | None = None,
        cancel: CancelFlag | None = None,
    ) -> None:
        """Fetch what ``checkpoint`` lacks, if anything. Raises what ``find`` and ``pull.pull_base`` raise."""
        base = base_of(read_config(checkpoint), checkpoint)
        if base is None or base.get("folder") is not None:
            self.find(name, checkpoint, on_progress=on_progress)
            return
        pinned = base_file(base, checkpoint)
        found: Path | None = None
        with contextlib.suppress(ModelFileError, ModelNotFoundError):
            found = self.find(name, checkpoint, on_progress=on_progress)
        # A copy that only the environment variable names may be gone tomorrow; one that lies elsewhere stays.
        if found is None or found == self._override(pinned):
            pull_base(pinned, self.folder, on_progress=on_progress, cancel=cancel)

    def pulled(self, checkpoint: Path) -> Path | None:
        """Where ``pull`` puts this checkpoint's base weights; ``None`` when it needs none."""
        base = base_of(read_config(checkpoint), checkpoint)
        if base is None or base.get("folder") is not None:
            return None
        return self.folder / base_file(base, checkpoint).file

    def forget_checks(self) -> None:
        """Have every file's bytes read again the next time."""
        self.stamps.unlink(missing_ok=True)

    def _check(self, file: Path, size: int, sha256: str, on_progress: OnProgress | None = None) -> None:
        check_pinned(file, size, sha256, stamps=self.stamps, on_progress=_checking(file.name, on_progress))

    def _override(self, pinned: BaseFile) -> Path | None:
        override = base_weights_override()
        return override / pinned.file if override is not None and override.is_dir() else override

    def _places(self, pinned: BaseFile, base: dict[str, Any], checkpoint: Path) -> Iterator[Path]:
        override = self._override(pinned)
        # The variable names one file; a checkpoint on another base must not be measured against it.
        if override is not None and (override.name == pinned.file or _has_size(override, pinned.size)):
            yield override
        yield checkpoint / pinned.file
        if base.get("path"):
            yield Path(base["path"])
        yield self.folder / pinned.file

    def _checked_folder(self, name: str, base: dict[str, Any], checkpoint: Path) -> Path:
        folder = Path(base["folder"])
        for file, (size, sha256) in _pins(base, checkpoint).items():
            if not (folder / file).is_file():
                raise ModelNotFoundError(
                    f"{name} stands on {folder}, which has no {file} any more. Put it back, or make the "
                    "checkpoint again with `infinichat retrofit`."
                )
            self._check(folder / file, size, sha256)
        return folder


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's ``config.json``. Raises ``ModelFileError`` when it is missing or no JSON object."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{folder} has no config.json; expected a Hugging Face folder, a checkpoint folder or a .gguf "
            "file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"Cannot read {file}: {error}. Get the model again.") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{file} holds a {type(config).__name__}, not an object. Get the model again.")
    return config


def check_own_files(checkpoint: Path, *, stamps: Path | None = None) -> None:
    """Raise ``ModelFileError`` unless the trained memory is there, every file that "files" of the
    configuration pins is that file, and every safetensors file is whole. ``stamps`` as in
    ``checksums.check_pinned``."""
    config = read_config(checkpoint)
    memory = checkpoint / MEMORY_FILE
    if config.get("memory_trained") and base_of(config, checkpoint) is not None and not memory.is_file():
        raise ModelFileError(
            f"{checkpoint} says that its memory is trained, but {MEMORY_FILE} is missing. Get the checkpoint "
            "again."
        )
    for name, (size, sha256) in _pins(config, checkpoint).items():
        check_pinned(checkpoint / name, size, sha256, stamps=stamps)
    for file in sorted(checkpoint.glob("*.safetensors")):
        check_safetensors(file)


def base_of(config: dict[str, Any], checkpoint: Path) -> dict[str, Any] | None:
    """ "base" of a checkpoint's configuration; ``None`` when it holds all its weights itself."""
    base = None if has_weights(checkpoint) else config.get("base")
    if base is None or isinstance(base, dict):
        return base
    raise _unusable(checkpoint, TypeError(type(base).__name__))


def base_file(base: dict[str, Any], checkpoint: Path) -> BaseFile:
    """The pinned file under "base". Raises ``ConfigError`` when the configuration does not name one."""
    package = base.get("package")
    try:
        if Path(base["file"]).name != base["file"]:
            raise ValueError(base["file"])
        return BaseFile(
            file=str(base["file"]),
            size=int(base["size"]),
            sha256=str(base["sha256"]),
            package=None
            if package is None
            else Package(package["name"], package["version"], package["member"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(checkpoint, error) from error


def _pins(pinned: dict[str, Any], checkpoint: Path) -> dict[str, tuple[int, str]]:
    try:
        return {
            str(name): (int(pin["size"]), str(pin["sha256"]))
            for name, pin in (pinned.get("files") or {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(checkpoint, error) from error


def _unusable(checkpoint: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f'{checkpoint / "config.json"} has an unusable "base" ({error!r}); expected file, size and sha256, '
        "or folder and files. Get the checkpoint again."
    )


def _checking(file: str, on_progress: OnProgress | None) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(PullProgress("check", file, done, total))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
