"""A name or path becomes a model with its tokenizer, ready to run.

Three kinds are taken (``registry.py`` tells them apart): a checkpoint folder made here, whose base weights
are elsewhere and pinned; a Hugging Face folder with safetensors; a GGUF file. The last two are wrapped on the
fly with an untrained, closed memory: they are their base model with a sliding window.

    loaded = load_model("smollm2-135m-infini", dtype=torch.bfloat16)
    loaded.model(ids), loaded.tokenizer.encode("Hi"), loaded.fingerprint

The loader checks everything and the caller nothing: what it returns has every weight in place, finite, and a
vocabulary that fits. Memory parameters stay float32 whatever ``dtype`` is. Nothing of pickle is ever opened.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from infinichat.errors import ConfigError, ModelFileError
from infinichat.model import family_config
from infinichat.model.base_weights import MEMORY_FILE, base_of, check_own_files, read_config
from infinichat.model.checksums import quick_digest, sha256_of
from infinichat.model.configuration_infini import FEATURES, InfiniConfig
from infinichat.model.families import (
    Family,
    chat_format_of,
    default_memory_layers,
    family_named,
    family_of,
)
from infinichat.model.gguf_config import gguf_config
from infinichat.model.gguf_file import GgufFile, read_gguf_header
from infinichat.model.gguf_tokenizer import gguf_tokenizer
from infinichat.model.layer_state import wide_dtype
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.registry import Entry, Registry
from infinichat.model.rope import rotations
from infinichat.model.safetensors_file import weight_files
from infinichat.model.stored import parameter_count, tie
from infinichat.model.tokenizer import Tokenizer, folder_tokenizer
from infinichat.model.weights import Stored, fill, read_weights, stored_names

_MEMORY = ".memory."  # in the name of every memory parameter
DEFAULT_WINDOW, DEFAULT_SEGMENT, DEFAULT_SINKS = 1024, 256, 4

# Fields of the configuration that change no result; everything else is part of a model's fingerprint.
_NO_RESULT = {"base", "files", "family", "chat_format", "use_cache", "initializer_range", "kwargs", "self"}
# Kept as infini_rope.
_ROPE = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"}
_NO_RESULT |= _ROPE


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on the CPU in evaluation mode. ``fingerprint`` (hex SHA-256) covers base weights, trained
    weights and every configuration value that changes a result, window and segment included, but not the
    dtype."""

    model: InfiniForCausalLM
    tokenizer: Tokenizer
    name: str
    fingerprint: str
    trained: bool
    chat_format: str
    parameters: int
    path: Path


@dataclass(frozen=True, slots=True)
class Source:
    """The pretrained weights under a model: where, of which family, with which configuration."""

    weights: Path
    family: Family
    arguments: dict[str, Any]
    tokenizer: Tokenizer
    header: GgufFile | None


def load_model(
    ref: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    segment: int | None = None,
    registry: Registry | None = None,
    light: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """Load the model of this name or path (without one the default), with ``window`` and ``segment`` (tokens)
    in place of its own where given. ``light``: the network on torch alone, without importing transformers,
    which takes 2 s (``hugging_face``), and of a GGUF the matrices in 4 or 8 bits as they are stored
    (``stored``). ``on_progress`` gets tensors read and tensors in all.

    Raises ``ModelNotFoundError`` with the next step, ``ModelFileError`` naming file and tensor,
    ``UnsupportedModelError``, ``ConfigError`` for values that cannot work together.
    """
    registry = registry or Registry()
    entry = registry.entry(ref)
    weights = registry.base_weights(entry.path)
    source = read_source(weights)
    made_here = entry.kind == "checkpoint"
    if made_here:
        check_own_files(entry.path, stamps=registry.base.stamps)
    config = checkpoint_config(entry.path, source) if made_here else wrapped_config(source)
    with_sizes(config, window, segment)
    file = _memory_file(entry)
    memory = None if file is None else read_weights(file, dtype=lambda _: wide_dtype(dtype))
    model = build(config, source, memory=memory, dtype=dtype, light=light, on_progress=on_progress)
    _check_vocabulary(source, config, entry.path)
    return LoadedModel(
        model=model,
        tokenizer=source.tokenizer,
        name=entry.name,
        fingerprint=_fingerprint(entry, weights, config),
        trained=config.memory_trained,
        chat_format=config.chat_format,
        parameters=parameter_count(model),
        path=entry.path,
    )


def read_source(weights: Path) -> Source:
    """Configuration and tokenizer of a GGUF file, a Hugging Face folder or a complete checkpoint folder."""
    header = read_gguf_header(weights) if weights.is_file() else None
    if header is not None:
        raw, tokenizer = gguf_config(header), gguf_tokenizer(header)
        header.forget_arrays()
    else:
        raw, tokenizer = read_config(weights), folder_tokenizer(weights)
        if raw.get("model_type") == InfiniConfig.model_type:
            family = family_named(raw.get("family", "llama"), weights)
            return Source(weights, family, family_config.own(raw, weights), tokenizer, header)
    family = family_of(raw, weights)
    return Source(weights, family, family.arguments(raw, weights), tokenizer, header)


def wrapped_config(source: Source, **chosen: Any) -> InfiniConfig:
    """The configuration of ``source`` with an untrained memory; ``chosen`` are ``InfiniConfig``'s own
    arguments.

    The window is never longer than what the model was trained for. Raises ``ConfigError``.
    """
    longest = int(source.arguments["max_position_embeddings"])
    window = min(DEFAULT_WINDOW, longest)
    segment = min(DEFAULT_SEGMENT, chosen.get("window") or window)
    own: dict[str, Any] = {
        "window": window,
        "segment": segment,
        "sinks": min(DEFAULT_SINKS, segment),
        "memory_layers": default_memory_layers(source.arguments["num_hidden_layers"]),
        "chat_format": chat_format_of(source.tokenizer),
        "family": source.family.name,
    }
    own |= {key: value for key, value in chosen.items() if value is not None}
    if own["window"] > longest:
        raise ConfigError(
            f"window is {own['window']}, but {source.weights.name} was trained for {longest} tokens. Choose "
            f"{longest} or less."
        )
    return _make_config(source.weights, {**source.arguments, **own})


def checkpoint_config(folder: Path, source: Source) -> InfiniConfig:
    """A checkpoint folder's configuration. Raises ``ConfigError`` naming a value that it does not share with
    the base weights it stands on: their outputs would silently be wrong."""
    raw = {key: value for key, value in read_config(folder).items() if key not in ("model_type", "files")}
    # A configuration from before there was a feature does not speak against its base.
    raw = {key: source.arguments[key] for key in FEATURES if key in source.arguments} | raw
    config = _make_config(folder, raw)
    base = _make_config(source.weights, source.arguments)
    for key in {*source.arguments, "infini_rope"} - _ROPE:
        if key.endswith("_token_id"):
            continue
        ours, theirs = getattr(config, key), getattr(base, key)
        if ours != theirs:
            raise ConfigError(
                f"{folder / 'config.json'} says {key} = {ours!r}, but {source.weights.name} has {theirs!r}. "
                "Get the checkpoint again, or make it again with `infinichat retrofit`."
            )
    return config


def with_sizes(config: InfiniConfig, window: int | None, segment: int | None) -> None:
    """Put another window or segment in place. Raises ``ConfigError`` when they cannot work together."""
    if window is not None:
        config.window = window
        config.segment = min(config.segment, window) if segment is None else segment
    elif segment is not None:
        config.segment = segment
    config.sinks = min(config.sinks, config.segment)
    config._check()


def build(
    config: InfiniConfig,
    source: Source,
    *,
    memory: Iterable[Stored] | None = None,
    dtype: torch.dtype = torch.float32,
    light: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> InfiniForCausalLM:
    """The model of ``config`` with the weights of ``source`` and the trained tensors ``memory`` by name;
    without them the memories have their closed start, the same every time. ``light`` as in ``load_model``.

    Raises ``ModelFileError`` and ``UnsupportedModelError`` naming the tensor.
    """
    model = _empty_model(config, source.weights)

    def precision(name: str) -> torch.dtype:
        return wide_dtype(dtype) if _MEMORY in name else dtype

    # Only what computes as a Llama does is run from blocks; the rest would come to be floats again.
    blocks = light and not config.features and not source.family.fused
    stored = read_weights(source.weights, dtype=precision, header=source.header, blocks=blocks)
    if memory is not None:
        stored = chain(stored, memory)
    names = list(model.state_dict())
    complete = memory is not None or any(_MEMORY in name for name in stored_names(source.weights))
    complete = complete or config.memory_trained
    fill(
        model,
        stored,
        wanted=names if complete else [name for name in names if _MEMORY not in name],
        unpack=lambda name, tensor: source.family.tensors(name, tensor, source.arguments),
        on_progress=on_progress,
    )
    if not complete:
        start_memories(model, wide_dtype(dtype))
    tie(model)
    model.config.dtype = dtype
    model.train(False)
    if light:
        return model
    whole: InfiniForCausalLM = model.as_transformers()
    return whole


def _make_config(path: Path, arguments: Mapping[str, Any]) -> InfiniConfig:
    try:
        return InfiniConfig(**arguments)
    except _unusable() as error:
        raise ConfigError(
            f"The configuration of {path} cannot be used ({type(error).__name__}: {error}). Get the model "
            "again."
        ) from error


def _unusable() -> tuple[type[Exception], ...]:
    """What Python, torch and transformers raise for a configuration with values of a wrong type or size."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
        StrictDataclassError,
    )


class _NoStart(TorchFunctionMode):
    """Draws no random weights: for tensors without memory torch imports its compiler to do so, a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        if func is torch.eye:  # the same
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _empty_model(config: InfiniConfig, path: Path) -> InfiniForCausalLM:
    """All modules, no weights: torch's meta device takes no memory."""
    try:
        # Also computed at the first forward; here so that an unknown kind is refused by the loader.
        rotations(config)
        with torch.device("meta"), _NoStart():
            return InfiniForCausalLM(config)
    except _unusable() as error:
        raise ConfigError(
            f"No model can be built from the configuration of {path} ({type(error).__name__}: {error}). Get "
            "the model again."
        ) from error


def start_memories(model: InfiniForCausalLM, dtype: torch.dtype) -> None:
    """Give every memory of ``model`` its untrained, closed start, drawn from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in model.model.layers:
            if layer.memory is not None:
                layer.memory.to_empty(device="cpu").to(dtype)
                model._init_weights(layer.memory)


def _memory_file(entry: Entry) -> Path | None:
    """The trained parts of a checkpoint that stands on base weights elsewhere."""
    file = entry.path / MEMORY_FILE
    if entry.kind != "checkpoint" or base_of(read_config(entry.path), entry.path) is None:
        return None
    return file if file.is_file() else None


def _check_vocabulary(source: Source, config: InfiniConfig, path: Path) -> None:
    # More rows than tokens is common (padding to a round number); fewer would make ids out of range.
    control, size = source.tokenizer.control_tokens, source.tokenizer.vocab_size
    while size - 1 in (control.get(token) for token in source.family.foreign):
        size -= 1
    if size > config.vocab_size:
        raise ModelFileError(
            f"{path} has a tokenizer of {size:,} tokens but embeddings for "
            f"{config.vocab_size:,}; they belong to different models. Get the model again."
        )


def _fingerprint(entry: Entry, weights: Path, config: InfiniConfig) -> str:
    base = base_of(read_config(entry.path), entry.path) if entry.kind == "checkpoint" else None
    memory = _memory_file(entry)
    names = [name for name in inspect.signature(InfiniConfig.__init__).parameters if name not in _NO_RESULT]
    fields = [name for name in names if name not in FEATURES or getattr(config, name) != FEATURES[name]]
    described = {
        "config": {name: getattr(config, name) for name in (*fields, "infini_rope", "tie_word_embeddings")},
        "weights": _weights_digest(base, weights),
        "memory": None if memory is None else sha256_of(memory),
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"infinichat-model-1\0" + canonical.encode()).hexdigest()


def _weights_digest(base: dict[str, Any] | None, weights: Path) -> list[str]:
    """What tells the weights apart: the pinned checksums, or samples of files that nobody pinned."""
    if base is not None and "sha256" in base:
        return [base["sha256"]]
    if base is not None:
        return sorted(pin["sha256"] for name, pin in base["files"].items() if name.endswith(".safetensors"))
    return [quick_digest(file) for file in (weight_files(weights) if weights.is_dir() else [weights])]
