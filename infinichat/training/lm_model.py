"""The model that ``train lm`` and ``train passkey`` train: loaded or new, what of it learns, and its folder.

    all      every weight
    memory   the memories alone
    lora     PEFT's LoRA on the attention's projections (of the layers above, where a memory is trained
             already), and the memories in full

A memory that was trained before is treated with more care than a new one, which learns all of its parameters
at ``Learning.rate``. AdamW moves every number by about the rate, however small its gradient, and where a task
is known already the gradient is small and mostly noise. What a step changes then depends on how large the
numbers are.

- ``say_out``, the shipped memory's copy matrix, has an rms of 0.0018: two steps of 3e-4, LoRA's usual rate,
  are a third of that, and every value came out wrong. It was worked out from the vocabulary
  (``adapters.copy_matrix``) and never learned, so it stays (``FIXED``).
- The others' rms is 0.013 to 2. Their rate is ``TRAINED_RATE``, a tenth of LoRA's, unless
  ``Learning.memory_rate`` says otherwise.
- What a memory is asked with, and what it writes, are the states of the layers below, as they were in its
  training. LoRA there, twenty steps at 3e-4, lost 2 of 12 keys whose memory was as it had been; LoRA above
  lost none. So it is on the layers above alone, unless ``Learning.lora_layers`` says otherwise.

What is written in the end is a complete model folder (config.json, model.safetensors, tokenizer files) with
LoRA merged in, which every command takes as ``--model``.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from infinichat.errors import UsageError
from infinichat.model.base_weights import read_config
from infinichat.model.checkpoint import write_bytes, write_checkpoint
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.loading import load_model, with_sizes
from infinichat.model.memories import ResidualMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.tokenizer import SpecialTokens, Tokenizer, folder_tokenizer
from infinichat.training.sharding import gathered

Learns = Literal["all", "memory", "lora"]
LEARNS: tuple[Learns, ...] = ("all", "memory", "lora")
LoraLayers = Literal["all", "above"]

BYTES = "bytes"
"""The tokenizer that needs no file: an id a byte."""

MEMORY = ".memory."

TRAINED_RATE = 3e-5
"""The rate of a memory that was trained before, where none is given and the usual one is not lower."""

FIXED = (".say_out",)
"""Ends of the names of parameters that do not learn in a memory that was trained before."""


@dataclass(frozen=True, slots=True)
class Start:
    """A checkpoint's name or path in ``model``; or a new model: ``config``, a JSON file with
    ``InfiniConfig``'s values, and ``tokenizer``, a folder with tokenizer.json or "bytes". ``window`` and
    ``segment`` (tokens) replace the model's own."""

    model: str | None = None
    config: Path | None = None
    tokenizer: str | None = None
    window: int | None = None
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class Learning:
    """What learns and how fast. ``gate_rate`` is for the memories' gates, which at a model's usual rate
    hardly move; ``memory_rate`` for their other parameters (None: ``rate``, or as ``begin`` chooses for a
    trained memory); neither they, nor vectors decay. ``lora_layers`` have LoRA: "all", or those "above" the
    memory (None: all, or above a trained memory)."""

    learns: Learns = "all"
    rate: float = 5e-5
    gate_rate: float = 0.01
    memory_rate: float | None = None
    decay: float = 0.0
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_layers: LoraLayers | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A model that is ready to learn: ``trained`` may be PEFT's wrapper around ``model``. ``learning`` is
    what was asked for with the rates that hold, and ``knows`` whether its memory was trained before."""

    model: InfiniForCausalLM
    trained: nn.Module
    tokenizer: Tokenizer
    name: str
    learning: Learning
    knows: bool

    @property
    def about(self) -> str:
        """For the first line of status: how much learns, and how fast a memory that was trained before."""
        words = f"{self.name}: {count(self.trained):,} numbers learn"
        if self.knows:
            words += f", its memory, which is trained already, at {self.learning.memory_rate:g}"
        if self.learning.lora_layers == "above":
            words += ", LoRA above it"
        return words


def begin(start: Start, learning: Learning) -> Started:
    """Load or make the model, with its memories open, and choose what of it learns. Random numbers come from
    torch's generator. Raises ``UsageError`` for what does not fit together and what loading raises."""
    if start.config is not None:
        model, tokenizer, name = _fresh(start, start.config)
    else:
        loaded = load_model(start.model, window=start.window, segment=start.segment)
        if not isinstance(loaded.tokenizer, Tokenizer):
            raise UsageError(f"{loaded.name} has a tokenizer that cannot be written again.")
        model, tokenizer, name = loaded.model, loaded.tokenizer, loaded.name
    if start.tokenizer is not None and start.config is None:
        raise UsageError("--tokenizer_name goes with --config_name; a checkpoint has its own tokenizer.")
    knows = model.config.memory_trained and bool(model.config.memory_layers)
    if knows and learning.lora_layers is None and learning.learns == "lora" and layers_above(model):
        learning = replace(learning, lora_layers="above")
    model.config.memory_trained = bool(model.config.memory_layers)
    if learning.learns != "all" and not model.config.memory_layers:
        raise UsageError(
            f"{name} has no memory layer, so --learns {learning.learns} would train no memory. Give it one: "
            "infinichat retrofit BASE OUT --memory delta --layers 0,1"
        )
    trained: nn.Module = model
    if learning.learns == "lora":
        trained = with_lora(model, learning)
    else:
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(learning.learns == "all" or MEMORY in parameter_name)
    if knows:
        for parameter_name, parameter in learners(trained).items():
            parameter.requires_grad_(not (MEMORY in parameter_name and parameter_name.endswith(FIXED)))
        if learning.memory_rate is None:
            learning = replace(learning, memory_rate=min(learning.rate, TRAINED_RATE))
    return Started(model, trained.train(), tokenizer, name, learning, knows)


def _fresh(start: Start, file: Path) -> tuple[InfiniForCausalLM, Tokenizer, str]:
    file = file / "config.json" if file.is_dir() else file
    if start.tokenizer is None:
        raise UsageError("a new model has no tokenizer. Name one: --tokenizer_name FOLDER, or bytes")
    tokenizer = byte_tokenizer() if start.tokenizer == BYTES else folder_tokenizer(Path(start.tokenizer))
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} is no configuration ({error}). Name a JSON file of InfiniConfig's values."
        ) from None
    kept = {k: v for k, v in values.items() if k not in ("model_type", "files", "base", "memory_trained")}
    config = InfiniConfig(**{"vocab_size": tokenizer.vocab_size, **kept})
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"{file} says vocab_size {config.vocab_size:,}, but {start.tokenizer} has "
            f"{tokenizer.vocab_size:,} tokens. Raise it."
        )
    with_sizes(config, start.window, start.segment)
    return InfiniForCausalLM(config), tokenizer, file.stem


def with_lora(model: InfiniForCausalLM, learning: Learning) -> nn.Module:
    """``model`` inside PEFT, its memories trained in full; raises ``UsageError`` when PEFT is missing, or no
    layer for it."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError("LoRA needs peft. Next: pip install 'infinichat[train]'") from None
    above = learning.lora_layers == "above"
    if above and not layers_above(model):
        raise UsageError("this model has no layer above a memory. Next: --lora_layers all")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=learning.lora_rank,
        lora_alpha=learning.lora_alpha,
        lora_dropout=learning.lora_dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["memory"],
        layers_to_transform=layers_above(model) if above else None,
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a property by its old name.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: nn.Module = get_peft_model(model.as_transformers(), config)
    return wrapped


def layers_above(model: InfiniForCausalLM) -> list[int]:
    """The layers above all memories that read the states of the layers below them; none where the memories
    are those of attention itself."""
    body = model.model
    places = [
        place for place in model.config.memory_layers if isinstance(body.layers[place].memory, ResidualMemory)
    ]
    return list(range(max(places) + 1, model.config.num_hidden_layers)) if places else []


def groups_of(model: nn.Module, learning: Learning) -> list[dict[str, Any]]:
    """AdamW's parameter groups: each with its ``base_rate``, which the schedule scales; memories apart, as
    they alone are never spread over processes."""
    by_kind: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in learners(model).items():
        rate = rate_of(name, learning)
        decay = 0.0 if MEMORY in name or parameter.dim() < 2 else learning.decay
        by_kind.setdefault((rate, decay, MEMORY in name), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "base_rate": rate, "weight_decay": decay}
        for (rate, decay, _), parameters in by_kind.items()
    ]


def rate_of(name: str, learning: Learning) -> float:
    """The rate of the parameter ``name``."""
    if is_gate(name):
        return learning.gate_rate
    own = learning.memory_rate if MEMORY in name else None
    return learning.rate if own is None else own


def learners(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


GATES = (".beta", ".alpha", ".matrix_gain")


def is_gate(name: str) -> bool:
    """Whether a parameter says how much of a memory's read is taken, also inside PEFT's copy of it."""
    return MEMORY in name and name.endswith(GATES)


def write_model(started: Started, folder: Path, *, extra: dict[str, str], writes: bool = True) -> Path:
    """The complete folder of the trained model; ``extra`` maps file names to texts. All processes have to
    call it, the one that has ``writes`` writes. Merging LoRA ends the training of ``started``."""
    model = started.trained
    if model is not started.model:
        model = model.merge_and_unload()  # type: ignore[operator]  # PEFT's
    assert isinstance(model, InfiniForCausalLM)
    tied = model.config.tie_word_embeddings
    state = {
        name: gathered(tensor.detach()).to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    if not writes:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    config = started.model.config
    config.base = None
    write_checkpoint(folder, config, extra={**tokenizer_files(started.tokenizer), **extra})
    assert read_config(folder)["model_type"] == InfiniConfig.model_type
    return folder


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """tokenizer.json and the roles and chat template that ``folder_tokenizer`` reads."""
    roles = {
        f"{role}_token": text
        for role in ("bos", "eos", "unk", "pad")
        if (text := getattr(tokenizer.special, role)) is not None
    }
    if tokenizer.chat_template is not None:
        roles["chat_template"] = tokenizer.chat_template
    return {
        "tokenizer.json": json.dumps(tokenizer.definition, ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(roles, indent=2, ensure_ascii=False) + "\n",
    }


def byte_tokenizer() -> Tokenizer:
    """``engine.byte_tokenizer`` as a file can hold it: the same ids, byte-level BPE without merges."""
    from infinichat.engine.byte_tokenizer import CONTROL_TOKENS

    symbols = _symbols()
    vocabulary = {symbols[byte]: byte for byte in range(256)}
    vocabulary |= {token: 256 + at for at, token in enumerate(CONTROL_TOKENS)}
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in CONTROL_TOKENS
    ]
    definition: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "unk_token": None, "vocab": vocabulary, "merges": []},
    }
    special = SpecialTokens(eos="<|endoftext|>", pad="<|endoftext|>")
    return Tokenizer(definition, special)


def _symbols() -> list[str]:
    """The character that byte-level BPE writes for each byte (printable ones for themselves)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = iter(range(256, 512))
    table = [chr(byte) if byte in own else chr(next(rest)) for byte in range(256)]
    assert set(table) == set(ByteLevel.alphabet())
    return table


def count(model: nn.Module) -> int:
    """Numbers that learn."""
    return sum(parameter.numel() for parameter in learners(model).values())


def seed_everything(seed: int) -> None:
    """Torch's generator; nothing else here draws without a seed of its own."""
    torch.manual_seed(seed)
