"""From a checkpoint and a folder of text to a trained memory: what ``infinichat train`` does.

<out>/cache/       cached streams (``cache.py``)
<out>/*.jsonl      the log of each stage     <out>/*.safetensors   the state of each stage
<out>/checkpoint/  config.json, memory.safetensors, run.json, README.md
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from infinichat.corpus.filler import Filler
from infinichat.errors import UsageError
from infinichat.model.bank_memory import BankMemory
from infinichat.model.base_weights import read_config
from infinichat.model.checkpoint import write_checkpoint
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.loading import LoadedModel
from infinichat.training.cache import prepare, read_shard, shard_files
from infinichat.training.loop import Plan, run_record, run_stage
from infinichat.training.plain import lower, offsets_of
from infinichat.training.pool import Pool
from infinichat.training.stages import GateStage, KeysStage, RecallStage, Stage

STAGES = ("keys", "gate", "recall")
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to train from and for how long. ``steps`` are per stage; ``tokens`` per shard of the cache."""

    text: Path
    out: Path
    stages: tuple[str, ...] = STAGES
    shards: int = 30
    tokens: int = 40_000
    steps: dict[str, int] | None = None
    seed: int = 0

    def steps_of(self, stage: str) -> int:
        """Measured to be enough for SmolLM2-135M: 3 to 10 minutes a stage on one core."""
        return (self.steps or {}).get(stage) or {"keys": 2000, "gate": 900, "recall": 400}[stage]


def memory_of(loaded: LoadedModel) -> tuple[int, BankMemory]:
    """The one memory layer and its memory; raises ``UsageError`` for what these stages cannot train."""
    layers = loaded.model.config.memory_layers
    memories = [(i, loaded.model.model.layers[i].memory) for i in layers]
    if len(memories) != 1 or not isinstance(memories[0][1], BankMemory):
        raise UsageError(
            f"{loaded.name} has {loaded.model.config.memory!r} memories in layers {layers}; these stages "
            "train one layer with a bank: infinichat retrofit BASE OUT --memory bank --layers N"
        )
    return memories[0][0], memories[0][1]


def train_memory(loaded: LoadedModel, options: Options, *, report: Report) -> Path:
    """Prepare, train and write the checkpoint; returns its folder. Takes up whatever is in
    ``options.out``."""
    started = time.perf_counter()
    layer, memory = memory_of(loaded)
    loaded.model.requires_grad_(False)
    memory.float()
    hashes = cache_streams(loaded, layer, options, report=report)
    shards = [read_shard(file) for file in shard_files(options.out / "cache", "train")]
    pool = Pool(shards, loaded.model, layer)
    report(f"{len(pool.told)} facts in {len(pool.ids):,} tokens")
    for name in options.stages:
        stage = _stage(name, loaded, layer, memory, pool)
        plan = Plan(options.steps_of(name), seed=options.seed)

        def show(step: int, numbers: dict[str, float], *, total: int = plan.steps, name: str = name) -> None:
            shown = "  ".join(f"{key} {value:.3f}" for key, value in numbers.items())
            report(f"{name}  {step}/{total}  {shown}")

        run_stage(stage, memory, options.out, plan, on_step=show)
    arguments = {
        key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()
    }
    record = run_record(arguments, data=hashes, seconds=time.perf_counter() - started)
    return write(loaded, layer, memory, options.out / "checkpoint", record)


def cache_streams(loaded: LoadedModel, layer: int, options: Options, *, report: Report) -> dict[str, str]:
    """Write the shards that are missing; returns the SHA-256 of each file of the text folder."""
    filler = Filler(options.text)
    hashes = {
        str(file.relative_to(options.text)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(options.text.rglob("*"))
        if file.suffix in (".jsonl", ".txt", ".md")
    }
    done = prepare(
        options.out / "cache",
        "train",
        lower(loaded.model, layer),
        offsets_of(loaded.tokenizer),
        filler,
        shards=options.shards,
        tokens=options.tokens,
        seed=options.seed,
    )
    for file in done:
        report(f"cached {file.name} of {options.shards}")
    return hashes


def _stage(name: str, loaded: LoadedModel, layer: int, memory: BankMemory, pool: Pool) -> Stage:
    if name == "keys":
        return KeysStage(memory, pool)
    if name == "gate":
        return GateStage(memory, pool)
    if name == "recall":
        if float(memory.alpha.detach()) == 0.0:
            # From zero, W_om and alpha would wait for each other; 8 was measured to be near where it ends.
            memory.alpha.data.fill_(8.0)
            memory.read_bias.data.zero_()
        return RecallStage(memory, pool, loaded.model, layer=layer)
    raise UsageError(f"there is no stage {name!r}; stages are {', '.join(STAGES)}")


def write(
    loaded: LoadedModel, layer: int, memory: BankMemory, folder: Path, record: dict[str, object]
) -> Path:
    """The checkpoint: the source's configuration with a trained memory, and the memory's parameters."""
    source = read_config(loaded.path)
    known = {key: value for key, value in source.items() if key not in ("files", "model_type")}
    config = InfiniConfig(**(known | {"memory_trained": True}))
    prefix = f"model.layers.{layer}.memory."
    tensors = {prefix + name: value.detach().to(torch.float32) for name, value in memory.named_parameters()}
    extra = {"run.json": json.dumps(record, indent=2) + "\n"}
    write_checkpoint(folder, config, memory=tensors, extra=extra)
    return folder
