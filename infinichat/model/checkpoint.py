"""Writing a checkpoint folder: configuration, what was trained, card.

    config.json            the configuration; "base" says what it stands on, "files" pins what lies beside it
    memory.safetensors     the trained memories (absent while untrained)
    README.md              the card

Retrofitting, training and whoever else makes a checkpoint write it here, so that one place knows the format.
Each file is written under another name first, then renamed; the configuration comes last and names the
checksums of the others, so a folder in which writing was cut off is not a checkpoint yet.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from infinichat.errors import DiskError
from infinichat.model.base_weights import MEMORY_FILE
from infinichat.model.checksums import sha256_of
from infinichat.model.configuration_infini import FEATURES, InfiniConfig


def write_checkpoint(
    folder: Path,
    config: InfiniConfig,
    *,
    memory: Mapping[str, Tensor] | None = None,
    card: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write ``folder`` (made when missing): ``memory`` are the parameters with ".memory." in their names, as
    a model's ``state_dict`` has them; ``card`` is Markdown; ``extra`` maps file names to texts, such as
    ``run.json`` and ``recall.json``. Files that are not named stay.

    Raises ``DiskError`` when something cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if memory is not None:
            chosen = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
            write_bytes(folder / MEMORY_FILE, save(chosen, metadata={"format": "pt"}))
        for name, text in {**({} if card is None else {"README.md": card}), **(extra or {})}.items():
            write_bytes(folder / name, text.encode())
        write_bytes(folder / "config.json", config_json(config, folder).encode())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        step = "Free some space" if full else "Make the folder writable or choose another one"
        raise DiskError(
            f"Cannot write the checkpoint {folder}: {error.strerror or error}. {step}."
        ) from error


def config_json(config: InfiniConfig, folder: Path) -> str:
    """``config.json``'s text, with the checksum of the trained memory in ``folder``."""
    values: dict[str, Any] = config.to_diff_dict()
    for key in ("transformers_version", "files", "dtype", "architectures"):
        values.pop(key, None)
    values = {key: value for key, value in values.items() if key not in FEATURES or value != FEATURES[key]}
    memory = folder / MEMORY_FILE
    if memory.is_file():
        values["files"] = {MEMORY_FILE: {"size": memory.stat().st_size, "sha256": sha256_of(memory)}}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def write_bytes(file: Path, data: bytes) -> None:
    """Write ``file`` so that it is either the old one or the whole new one."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, file)
