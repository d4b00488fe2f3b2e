"""A pretrained model becomes a checkpoint with an untrained memory.

Nothing of the base is changed and nothing is trained: the result is a folder whose configuration says which
pretrained weights it stands on (by file name, size and SHA-256, or a copy of them) and which layers have a
memory. The memory is closed, so its outputs are the base's over the window, until it is trained.

    retrofit("TinyLlama-1.1B", Path("tiny-infini"), memory_layers=[13], window=2048)

Which pretrained models can be taken is the table in ``families.py``. Every tensor of the base is read once
and must have its place, and every place its tensor: ``weights.fill`` asserts both.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infinichat.errors import DiskError, UsageError
from infinichat.model.base_weights import base_of, read_config
from infinichat.model.checkpoint import write_checkpoint
from infinichat.model.checksums import sha256_of
from infinichat.model.configuration_infini import InfiniConfig, MemoryKind
from infinichat.model.families import FAMILIES
from infinichat.model.loading import Source, build, read_source, wrapped_config
from infinichat.model.registry import Entry, Registry
from infinichat.model.safetensors_file import INDEX, weight_files

__all__ = ["FAMILIES", "retrofit"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def retrofit(
    base: str | Path,
    out: Path,
    *,
    window: int | None = None,
    segment: int | None = None,
    sinks: int | None = None,
    memory: MemoryKind | None = None,
    memory_layers: Sequence[int] | None = None,
    memory_slots: int | None = None,
    memory_key_dim: int | None = None,
    memory_order: int | None = None,
    chat_format: str | None = None,
    copy: bool = False,
    registry: Registry | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint folder ``out``, a new one, from the model ``base`` (name, folder or GGUF); returns
    it.

    What is ``None`` is chosen: a window of 1,024 tokens (less where the base was trained for less) in
    segments of 256, 4 sinks, a "recall" memory three fifths up (of a bank 1,024 slots; keys 64 wide, DPFP of
    order 3), the chat format that the tokenizer speaks.
    With ``copy`` the base weights are copied into the folder; otherwise they stay where they are. Raises
    ``UsageError`` when ``out`` is taken, what ``load_model`` raises for ``base``, ``ConfigError`` for values
    that cannot work together, ``DiskError``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already. Choose a folder that does not exist yet.")
    registry = registry or Registry()
    entry = registry.entry(base)
    weights = registry.base_weights(entry.path)
    source = read_source(weights)
    config = wrapped_config(
        source,
        window=window,
        segment=segment,
        sinks=sinks,
        memory=memory,
        memory_layers=None if memory_layers is None else list(memory_layers),
        memory_slots=memory_slots,
        memory_key_dim=memory_key_dim,
        memory_order=memory_order,
        chat_format=chat_format,
    )
    build(config, source, on_progress=on_progress)
    with _new_folder(out) as folder:
        config.base = _copied(source, folder) if copy else _reference(entry, weights)
        write_checkpoint(folder, config, card=_card(out.name, entry, config))
    return out


def _reference(entry: Entry, weights: Path) -> dict[str, Any]:
    """How the configuration names base weights that stay where they are. A checkpoint's own base is named as
    it names it, so that a published package stays known."""
    if entry.kind == "checkpoint":
        known = base_of(read_config(entry.path), entry.path)
        if known is not None:
            return {key: value for key, value in known.items() if key != "path"} | _path_of(known, weights)
    if weights.is_file():
        return _pin(weights) | {"file": weights.name, "path": str(weights.resolve())}
    pinned = [*weight_files(weights), weights / "config.json", weights / "tokenizer.json"]
    return {"folder": str(weights.resolve()), "files": {file.name: _pin(file) for file in pinned}}


def _path_of(known: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The place of a user's own file; a published one is found by name in the folder of pulled weights."""
    return {} if known.get("package") or known.get("folder") else {"path": str(weights.resolve())}


def _copied(source: Source, folder: Path) -> dict[str, Any] | None:
    """Copy the base weights into ``folder``; ``None`` when the folder is complete with them."""
    if source.weights.is_file():
        shutil.copyfile(source.weights, folder / source.weights.name)
        return _pin(folder / source.weights.name) | {"file": source.weights.name}
    names = [file.name for file in weight_files(source.weights)]
    for name in (*names, INDEX, *_TOKENIZER_FILES):
        if (source.weights / name).is_file():
            shutil.copyfile(source.weights / name, folder / name)
    return None


def _pin(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that gets its name when all of it is written, and is deleted otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield folder
            folder.chmod(0o755)
            if out.exists():
                out.rmdir()
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        step = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose another folder"
        raise DiskError(f"Cannot write {out}: {error.strerror or error}. {step}.") from error


def _card(name: str, entry: Entry, config: InfiniConfig) -> str:
    layers = ", ".join(map(str, config.memory_layers)) or "none"
    return (
        f"# {name}\n\n"
        f"{entry.name} with a place for a memory; the memory is not trained, so it runs as a sliding "
        "window.\n\n| | |\n|---|---|\n"
        f"| made from | {entry.name} |\n"
        f"| window | {config.window:,} tokens, in segments of {config.segment:,}; the first {config.sinks} "
        f"stay |\n| memory | `{config.memory}`, layers: {layers}; closed |\n"
        f"| measured recall | none: beyond the window nothing is remembered |\n"
    )
