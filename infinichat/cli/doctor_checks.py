"""The checks of ``infinichat doctor``: what each looks at, and the sentence and next step for what it finds.

A check may raise an ``InfiniChatError``; the command shows it as a fault. Torch is imported by one of them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infinichat.cli.context import Context
from infinichat.config import ENV_PREFIX, env_name, setting_keys
from infinichat.text.figures import counted, size

# A checkpoint, its states and a database copy need room. Bytes.
_LOW_DISK = 500e6
# What the default checkpoint and the app take while they run. Bytes.
_LOW_MEMORY = 1.2e9
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "textual", "rich")
_OWN_VARIABLES = {"INFINICHAT_HOME", "INFINICHAT_BASE_WEIGHTS"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the report."""

    check: str
    state: Literal["ok", "warning", "fault"]
    detail: str
    next_step: str | None = None


def check_python(context: Context) -> list[Finding]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        return [Finding("python", "ok", detail)]
    return [Finding("python", "fault", f"{detail}; expected 3.11 to 3.14", "install one of those versions")]


def check_packages(context: Context) -> list[Finding]:
    missing, versions = [], []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Finding("packages", "fault", f"missing: {', '.join(missing)}", "pip install .")]
    return [Finding("packages", "ok", ", ".join(versions))]


def check_torch(context: Context) -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [
            Finding("torch", "fault", f"cannot be imported ({error})", "pip install --force-reinstall torch")
        ]
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append(f"cuda ({torch.cuda.get_device_name(0)})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [Finding("torch", "ok", f"{torch.__version__}, devices: {', '.join(devices)}")]


def check_processor(context: Context) -> list[Finding]:
    import psutil

    chosen = context.settings().engine.threads
    threads = f"{chosen} threads are set" if chosen else "the number of threads is chosen by measurement"
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS")
    detail = f"{counted(physical, 'core')}, {threads}" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    found = [Finding("processor", "ok", detail)]
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    detail = f"{size(free)} of {size(total)} free"
    if free < _LOW_MEMORY:
        found.append(
            Finding("memory", "warning", detail, "close other programs, or choose a smaller checkpoint")
        )
    else:
        found.append(Finding("memory", "ok", detail))
    return found


def check_folders(context: Context) -> list[Finding]:
    return [finding for root in _roots(context) for finding in _check_folder(root)]


def _roots(context: Context) -> list[Path]:
    paths = context.paths
    return [paths.data, paths.config, paths.state]


def _check_folder(folder: Path) -> Iterator[Finding]:
    name = f"folder {folder}"
    existing = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not existing.is_dir():
        yield Finding(name, "fault", f"{existing} is a file", "move it away, or set INFINICHAT_HOME")
        return
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(name, "fault", "cannot be written", f"chmod u+rwx '{existing}', or set INFINICHAT_HOME")
        return
    free = shutil.disk_usage(existing).free
    if free < _LOW_DISK:
        yield Finding(name, "warning", f"only {size(free)} free", "free some space on this disk")
    elif existing is folder and _open_to_others(folder):
        yield Finding(name, "warning", "others can read it", f"chmod 700 '{folder}'")
    else:
        yield Finding(name, "ok", f"{size(free)} free" + ("" if existing is folder else ", not made yet"))


def _open_to_others(folder: Path) -> bool:
    """Whether another user of this machine could read words in here. Opening the store closes its folder, so
    one that holds only fetched weights is no matter."""
    holds_words = any(file.suffix in {".db", ".log", ".jsonl", ".toml"} for file in folder.iterdir())
    return holds_words and os.name == "posix" and bool(stat.S_IMODE(folder.stat().st_mode) & 0o077)


def check_settings(context: Context) -> list[Finding]:
    context.settings()
    known = {env_name(key) for key in setting_keys()} | _OWN_VARIABLES
    strange = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    if strange:
        detail = f"not a setting: {', '.join(strange)}"
        return [Finding("settings", "warning", detail, "unset it, or correct the name")]
    exists = context.paths.settings.exists()
    return [Finding("settings", "ok", str(context.paths.settings) if exists else "the defaults (no file)")]


def check_database(context: Context) -> list[Finding]:
    if not context.paths.database.exists():
        return [Finding("database", "ok", "not made yet")]
    with context.open_store() as store:
        count, faults, usage = len(store.sessions()), store.verify(), store.disk_usage()
    if faults:
        step = "infinichat verify lists them all"
        return [Finding("database", "fault", fault, step) for fault in faults[:3]]
    states = f"{counted(usage.snapshot_count, 'saved state')} ({size(usage.snapshots)})"
    return [Finding("database", "ok", f"{counted(count, 'session')} ({size(usage.transcript)}), {states}")]


def check_models(context: Context) -> list[Finding]:
    from infinichat.cli.models import registry_of, state_of

    registry = registry_of(context)
    found = []
    for entry in registry.entries():
        name = f"model {entry.name}"
        problems = registry.verify(entry.name) if entry.installed or entry.problem else []
        memory = "memory trained" if entry.trained else "memory not trained, it remembers the window only"
        if problems:
            step = f"infinichat models remove {entry.name}, then pull it again"
            found += [Finding(name, "fault", problem, step) for problem in problems]
        elif entry.default and not entry.installed:
            found.append(Finding(name, "fault", "not fetched yet", f"infinichat models pull {entry.name}"))
        else:
            checked = ", every byte checked" if entry.installed else ""
            found.append(Finding(name, "ok", f"{state_of(entry)}, {memory}{checked}"))
    if not any(entry.default for entry in registry.entries()):
        chosen = registry.default
        found.append(
            Finding("models", "fault", f"'{chosen}' is chosen and not here", "infinichat models list")
        )
    return found


def check_terminal(context: Context) -> list[Finding]:
    if not context.console.interactive:
        return [Finding("terminal", "ok", "none (a pipe or a file); infinichat uses the plain chat here")]
    columns, lines = shutil.get_terminal_size()
    detail = f"{columns}x{lines}, TERM={os.environ.get('TERM', '')}, {context.console.stdout.encoding}"
    if os.environ.get("TERM", "dumb") == "dumb":
        return [Finding("terminal", "warning", detail, "use infinichat --plain, or set TERM")]
    if context.console.stdout.encoding.lower().replace("-", "") != "utf8":
        return [Finding("terminal", "warning", f"{detail} is not UTF-8", "set LANG to a UTF-8 locale")]
    if columns < 80 or lines < 24:
        return [Finding("terminal", "warning", f"{detail}; expected 80x24 or more", "make the window larger")]
    return [Finding("terminal", "ok", detail)]


CHECKS: tuple[tuple[str, Callable[[Context], list[Finding]]], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("torch", check_torch),
    ("settings", check_settings),
    ("processor", check_processor),
    ("folders", check_folders),
    ("database", check_database),
    ("models", check_models),
    ("terminal", check_terminal),
)
