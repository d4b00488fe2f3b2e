"""Settings: what a user can change, where it comes from, and what is a mistake.

Three layers, the later one wins: the defaults below, ``settings.toml`` (see ``paths.py``), and environment
variables named after the key (``engine.threads`` is ``INFINICHAT_ENGINE_THREADS``). A key is a dotted path
through the dataclasses; a key or value that cannot be used is an error that names it, never silently ignored.

    model = "my-checkpoint"

    [engine]
    threads = 4

    [sampling]
    temperature = 0.3

Nothing here creates a folder until ``save_setting`` is called.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infinichat.errors import ConfigError, DiskError
from infinichat.messages import SamplingOptions
from infinichat.paths import Paths

ENV_PREFIX = "INFINICHAT_"

Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the model runs. ``None`` and "auto" mean: chosen by measurement on this machine.

    ``window`` and ``segment`` (tokens) override the checkpoint's own; a session's saved state belongs to the
    values it was made with, so changing them streams the session again.
    """

    threads: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    window: int | None = None
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class UiSettings:
    """The app. With ``enter_sends`` false, Enter is a new line and Ctrl+J sends."""

    theme: str = "infinichat"
    enter_sends: bool = True


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Sessions on disk. A deleted session can be brought back for ``keep_deleted_days`` days."""

    keep_deleted_days: float = 30.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set. ``model`` is a checkpoint's name or path; ``None`` is the default one."""

    model: str | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    ui: UiSettings = field(default_factory=UiSettings)
    store: StoreSettings = field(default_factory=StoreSettings)


# Smallest and largest value that makes sense; the type is checked from the dataclass.
_RANGES: dict[str, tuple[float, float]] = {
    "engine.threads": (1, 1024),
    "engine.window": (16, 1 << 20),
    "engine.segment": (1, 1 << 20),
    "sampling.temperature": (0, 10),
    "sampling.top_p": (0, 1),
    "sampling.top_k": (0, 1 << 20),
    "sampling.min_p": (0, 1),
    "sampling.repetition_penalty": (0.01, 10),
    "sampling.repetition_window": (0, 1 << 20),
    "sampling.dry_multiplier": (0, 100),
    "sampling.dry_base": (1, 10),
    "sampling.dry_allowed_length": (1, 1 << 20),
    "sampling.seed": (0, (1 << 63) - 1),
    "sampling.max_tokens": (1, 1 << 30),
    "store.keep_deleted_days": (0, 36500),
}


def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def setting_keys() -> dict[str, Any]:
    """Every key and its type, in the order in which they are documented."""
    keys: dict[str, Any] = {}
    for name, hint in _hints(Settings).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            keys.update({f"{name}.{inner}": inner_hint for inner, inner_hint in _hints(hint).items()})
        else:
            keys[name] = hint
    return keys


def setting_value(settings: Settings, key: str) -> Value:
    """The value behind a dotted key; raises ``ConfigError`` for a key that does not exist."""
    _require_key(key, "settings")
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return typing.cast(Value, value)


def env_name(key: str) -> str:
    """The environment variable that overrides this key."""
    return ENV_PREFIX + key.replace(".", "_").upper()


def load_settings(paths: Paths, *, env: Mapping[str, str] | None = None) -> Settings:
    """Defaults, then ``paths.settings``, then the environment. Raises ``ConfigError``."""
    values = {**_from_file(paths.settings), **_from_env(os.environ if env is None else env)}
    return with_values(Settings(), values)


def with_values(settings: Settings, values: Mapping[str, Value]) -> Settings:
    """A copy of ``settings`` with these keys set; values have been checked before."""
    areas: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        area, _, name = key.rpartition(".")
        areas.setdefault(area, {})[name] = value
    changed: dict[str, Any] = dict(areas.pop("", {}))
    for area, inner in areas.items():
        changed[area] = dataclasses.replace(getattr(settings, area), **typing.cast(dict[str, Any], inner))
    return dataclasses.replace(settings, **changed)


def parse_value(key: str, text: str, *, source: str = "the value") -> Value:
    """``text`` as the type that ``key`` has: "none" or "" for nothing, "a,b" for a list.

    Raises ``ConfigError`` with the value got and the values expected.
    """
    hint = _require_key(key, source)
    options = _alternatives(hint)
    if type(None) in options and text.strip().lower() in {"", "none", "null"}:
        return None
    if bool in options:
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
        words["0"] = False
        if text.strip().lower() in words:
            return words[text.strip().lower()]
    for number in (int, float):
        if number in options:
            try:
                return _checked(key, number(text), source)
            except ValueError:
                continue
    if tuple in options:
        return tuple(part for part in text.split(",") if part)
    return _checked(key, text, source)


def save_setting(paths: Paths, key: str, value: Value) -> None:
    """Write one key to ``settings.toml``, keeping comments and everything else; ``None`` removes the key.

    The file is replaced as a whole after a sync, so a crash leaves the old or the new one. Raises
    ``ConfigError`` for a key or value that cannot be used, ``DiskError`` when the folder cannot be written.
    """
    _require_key(key, "settings")
    if value is not None:
        _checked(key, value, "the value")
    _from_file(paths.settings)
    try:
        old = paths.settings.read_text(encoding="utf-8") if paths.settings.exists() else ""
        new = _edited(old, key, value)
        paths.settings.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = paths.settings.with_suffix(f".{os.getpid()}.tmp")
        with open(temporary, "w", encoding="utf-8", opener=_private) as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, paths.settings)
    except OSError as error:
        raise DiskError(
            f"{paths.settings} cannot be written ({error.strerror}). Next: check its permissions and "
            "free space, or set INFINICHAT_HOME to a folder that can be written."
        ) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _from_file(file: Path) -> dict[str, Value]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}). Next: make it a readable UTF-8 file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}. Next: mend that line or remove it.") from error
    values: dict[str, Value] = {}
    for name, value in table.items():
        inner = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        for key, item in inner.items():
            _require_key(key, str(file))
            values[key] = _checked(key, tuple(item) if isinstance(item, list) else item, str(file))
    return values


def _from_env(env: Mapping[str, str]) -> dict[str, Value]:
    return {
        key: parse_value(key, env[env_name(key)], source=f"the variable {env_name(key)}")
        for key in setting_keys()
        if env_name(key) in env
    }


def _require_key(key: str, source: str) -> Any:
    keys = setting_keys()
    if key in keys:
        return keys[key]
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.5)
    hint = f"Near: {', '.join(near)}." if near else f"Valid keys: {', '.join(keys)}."
    raise ConfigError(f"{source} has the unknown key '{key}'. {hint}")


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [typing.get_origin(part) or part for part in typing.get_args(hint)]
    return [typing.get_origin(hint) or hint]


def _checked(key: str, value: Any, source: str) -> Value:
    hint = setting_keys()[key]
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            expected = ", ".join(typing.get_args(hint))
            raise ConfigError(f"{source}: {key} is {value!r}; expected one of {expected}.")
        return typing.cast(Value, value)
    options = _alternatives(hint)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int to Python, never to a user.
    if type(value) not in options or (
        isinstance(value, tuple) and not all(isinstance(v, str) for v in value)
    ):
        raise ConfigError(f"{source}: {key} is {value!r}; expected {_type_name(options)}.")
    low, high = _RANGES.get(key, (float("-inf"), float("inf")))
    if isinstance(value, int | float) and not low <= value <= high:
        raise ConfigError(f"{source}: {key} is {value}; expected a number from {low:g} to {high:g}.")
    return typing.cast(Value, value)


def _type_name(options: list[Any]) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        tuple: "a list of texts",
        type(None): "nothing",
    }
    return " or ".join(names[option] for option in options)


def _edited(text: str, key: str, value: Value) -> str:
    """``text`` (TOML) with one key set or removed, line by line, so that comments survive."""
    area, _, name = key.rpartition(".")
    line = None if value is None else f"{name} = {_toml(value)}\n"
    lines = [part if part.endswith("\n") else part + "\n" for part in text.splitlines(keepends=True)]
    headers = [i for i, part in enumerate(lines) if part.lstrip().startswith("[")]
    wanted = [i for i in headers if lines[i].split("#")[0].strip() == f"[{area}]"]
    start = (wanted[0] + 1 if wanted else len(lines)) if area else 0
    end = next((i for i in headers if i >= start), len(lines))
    for i in range(start, end):
        if lines[i].split("=")[0].strip().strip("\"'") == name:
            lines[i : i + 1] = [] if line is None else [line]
            return "".join(lines)
    if line is None:
        return "".join(lines)
    if area and not wanted:
        return "".join([*lines, "\n" if lines else "", f"[{area}]\n", line])
    while end > start and not lines[end - 1].strip():
        end -= 1
    return "".join([*lines[:end], line, *lines[end:]])


def _toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
