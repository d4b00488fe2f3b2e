"""From a checkpoint and a folder of text to a trained memory: what ``infinichat train`` does.

<out>/cache/       cached streams (``cache.py``) and the base's answers to general questions
<out>/*.jsonl      the log of each stage     <out>/*.safetensors   the state of each stage
<out>/checkpoint/  config.json, memory.safetensors, run.json, README.md
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from infinichat.corpus.conversations import StreamMaker
from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.filler import Filler
from infinichat.errors import UsageError
from infinichat.model.adapters import Adapters, copy_matrix
from infinichat.model.bank_memory import BankMemory
from infinichat.model.base_weights import read_config
from infinichat.model.checkpoint import write_checkpoint
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.loading import LoadedModel
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.topics import Topics
from infinichat.training.cache import (
    Kind,
    draw_mixed,
    draw_pages,
    prepare,
    read_shard,
    shard_files,
    write_shard,
)
from infinichat.training.checks import gate_on, recall_on
from infinichat.training.general import general_answers, general_streams
from infinichat.training.lm_run import Processes
from infinichat.training.loop import Check, Plan, run_record, run_stage
from infinichat.training.plain import lower, offsets_of
from infinichat.training.pool import Pool
from infinichat.training.recall import RecallStage
from infinichat.training.stages import GateStage, KeysStage, MarksStage, Stage

STAGES = ("gate", "keys", "marks", "recall")
"""The gate first: what it lets through is the company of facts in the stages after it."""
STEPS = {"keys": 2500, "marks": 1200, "gate": 900, "recall": 900}
"""Enough for SmolLM2-135M: 2 to 15 minutes a stage on one core, recall 50."""

MIXED = 8
"""Shards of telling and asking for each of young conversations, which is twice as large, and each of
pages."""

CHECK_SIDES: tuple[Side, ...] = ("seen", "held_out")
CHECK_EVERY = {"keys": 500, "marks": 500, "gate": 900, "recall": 400}
NEW_TOPICS = 0.002
"""Spread of the weights that a trained key gives to topic heads that are new."""

SAY_START = 10.0
"""Nats by which a copied token's score rises at first."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to train from and for how long. ``steps`` are per stage; ``tokens`` per shard of the cache;
    ``general`` questions are put to the base; ``rank`` of the
    adapters above the memory and the number of its ``topics`` heads, 0 for none, where the checkpoint has
    none that it keeps; ``fresh``: from an untrained memory, whatever the checkpoint
    has."""

    text: Path
    out: Path
    stages: tuple[str, ...] = STAGES
    shards: int = 16
    tokens: int = 40_000
    steps: dict[str, int] | None = None
    seed: int = 0
    general: int = 240
    rank: int = 8
    topics: int = 4
    fresh: bool = True

    def steps_of(self, stage: str) -> int:
        """Steps of ``stage``."""
        return (self.steps or {}).get(stage) or STEPS[stage]


def memory_of(loaded: LoadedModel) -> tuple[int, BankMemory]:
    """The one memory layer and its memory; raises ``UsageError`` for what these stages cannot train."""
    layers = loaded.model.config.memory_layers
    memories = [(i, loaded.model.model.layers[i].memory) for i in layers]
    if len(memories) != 1 or not isinstance(memories[0][1], BankMemory):
        raise UsageError(
            f"{loaded.name} has {loaded.model.config.memory!r} memories in layers {layers}; these stages "
            "train one layer with a bank: infinichat retrofit BASE OUT --memory bank --layers N"
        )
    other = loaded.model.config.features
    if other:
        raise UsageError(
            f"{loaded.name} is of family {loaded.model.config.family!r}, with {', '.join(other)}; these "
            "stages run Llama's own layers only. Train a memory on a Llama, SmolLM2 or Qwen2."
        )
    return memories[0][0], memories[0][1]


@torch.no_grad()
def start_afresh(memory: BankMemory, model: InfiniForCausalLM, layer: int, *, seed: int) -> None:
    """The untrained start. The present state is projected as the layer's own keys are; the rest is small
    noise."""
    torch.manual_seed(seed)
    memory.reset_parameters()
    own = model.model.layers[layer].self_attn.k_proj.weight.float()
    heads, width = model.config.num_key_value_heads, own.shape[1]
    for matrix in (memory.context, memory.fade):
        nn.init.normal_(matrix, std=0.3 * width**-0.5)
    if memory.context.shape[0] * heads == own.shape[0] * memory.heads:
        shared = own.view(heads, -1, width).repeat_interleave(memory.heads // heads, dim=0)
        memory.context[:, :width] = shared.reshape(-1, width)


def train_memory(
    loaded: LoadedModel,
    options: Options,
    *,
    report: Report,
    say: Report | None = None,
    processes: Processes | None = None,
) -> Path:
    """Prepare, train and write the checkpoint; returns its folder. Takes up whatever is in ``options.out``.
    ``report`` gets passing lines of progress, ``say`` those that should stay. ``processes`` share the steps'
    work; the first alone prepares and writes."""
    started = time.perf_counter()
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        raise UsageError(f"there is no stage {unknown[0]!r}; stages are {', '.join(STAGES)}")
    layer, memory = memory_of(loaded)
    loaded.model.requires_grad_(False)
    memory.float()
    give_topics(loaded, memory, options)
    if options.fresh:
        start_afresh(memory, loaded.model, layer, seed=options.seed)
    first = processes is None or processes.first
    hashes = cache_streams(loaded, layer, options, report=report) if first else {}
    if processes is not None:
        processes.wait()
    pool = pool_of(loaded, layer, options, ("train", "mixed", "page", "general"))
    checks = {side: pool_of(loaded, layer, options, (side,)) for side in CHECK_SIDES}
    report(f"{len(pool.told)} facts in {len(pool.ids):,} tokens")
    give_adapters(loaded, layer, memory, options)
    for name in options.stages:
        start = not (options.out / f"{name}.safetensors").exists()
        if name == "marks" and start and options.fresh:
            mark_as_keys(memory, seed=options.seed)
        stage = _stage(name, loaded, layer, memory, pool)
        check = Check(CHECK_EVERY[name], partial(_checked, name, memory, checks), say or report)
        plan = Plan(options.steps_of(name), options.seed)
        run_stage(stage, options.out, plan, check=check, report=report, processes=processes)
    arguments = asdict(options) | {"text": options.text.name, "out": options.out.name}
    record = run_record(arguments, data=hashes, seconds=time.perf_counter() - started)
    record["start"] = None if options.fresh else loaded.fingerprint
    record["processes"] = 1 if processes is None else processes.share.count
    if not first:
        return options.out / "checkpoint"
    return write(loaded, layer, memory, options.out / "checkpoint", record)


def give_topics(loaded: LoadedModel, memory: BankMemory, options: Options) -> None:
    """Topic heads in the memory and its configuration: the checkpoint's own, or new ones, of which its keys
    have almost nothing yet."""
    if memory.topics is not None and not options.fresh:
        return
    config, wide = loaded.model.config, memory.fade.shape[1]
    torch.manual_seed(options.seed)
    config.memory_topics = options.topics
    memory.topics = Topics(config.hidden_size, options.topics) if options.topics else None
    new = torch.randn(memory.width, options.topics * config.hidden_size) * NEW_TOPICS
    memory.context = nn.Parameter(torch.cat((memory.context.detach()[:, :wide], new), dim=1))


def give_adapters(loaded: LoadedModel, layer: int, memory: BankMemory, options: Options) -> None:
    """Adapters for the layers above ``layer``, in the memory and its configuration: the checkpoint's own, or
    new ones that change nothing."""
    config = loaded.model.config
    if memory.adapters is not None and not options.fresh:
        return
    config.memory_rank, memory.adapters = options.rank, None
    if options.rank and layer + 1 < config.num_hidden_layers:
        torch.manual_seed(options.seed)
        memory.adapters = Adapters(config, below=layer, rank=options.rank)
        memory.adapters.reset_parameters()


def pool_of(loaded: LoadedModel, layer: int, options: Options, sides: tuple[Kind, ...]) -> Pool:
    """The cached shards of ``sides``."""
    files = [file for side in sides for file in shard_files(options.out / "cache", side)]
    return Pool([read_shard(file) for file in files], loaded.model, layer)


def _checked(stage: str, memory: BankMemory, pools: dict[Side, Pool]) -> dict[str, float]:
    """What is written or recalled of held-out streams, for the log."""
    if stage == "gate":
        return {
            f"{side} {name}": share
            for side, pool in pools.items()
            for name, share in gate_on(memory, pool).items()
        }
    return {
        f"{side} {name} {facts}": share
        for side, pool in pools.items()
        for facts in (16, 64)
        if pool.known
        for name, share in recall_on(memory, pool, facts=facts, questions=96, ideal=stage == "keys").items()
    }


def cache_streams(loaded: LoadedModel, layer: int, options: Options, *, report: Report) -> dict[str, str]:
    """Write the shards that are missing; returns the SHA-256 of each file of the text folder."""
    fillers = {False: Filler(options.text), True: Filler(options.text, validation=True)}
    hashes = {
        str(file.relative_to(options.text)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(options.text.rglob("*"))
        if file.suffix in (".jsonl", ".txt", ".md")
    }
    folder, below = options.out / "cache", lower(loaded.model, layer)
    folder.mkdir(parents=True, exist_ok=True)
    general = general_answers(
        loaded,
        folder / "general.json",
        fillers[False],
        count=options.general,
        seed=options.seed,
        report=report,
    )
    kept = folder / "general-00000.safetensors"
    if not kept.exists():
        rng = random.Random(f"{options.seed}/general streams")
        write_shard(kept, [("general", s) for s in general_streams(general, loaded, rng)], [], below)
    tokenizer = offsets_of(loaded.tokenizer)
    drawn = (("mixed", "young conversations", draw_mixed, 2), ("page", "pages", draw_pages, 1))
    for number, (kind, called, draw, size) in itertools.product(range(-(-options.shards // MIXED)), drawn):
        file = folder / f"{kind}-{number:05d}.safetensors"
        if file.exists():
            continue
        rng = random.Random(f"{options.seed}/{kind}/{number}")
        maker = StreamMaker(FactMaker("train"), fillers[False], tokenizer, rng, general=general)
        write_shard(file, draw(maker, size * options.tokens), maker.facts, below)
        report(f"cached {file.name}, {called}")
    sides: tuple[tuple[Side, int], ...] = (("seen", 1), ("held_out", 1), ("train", options.shards))
    for side, shards in sides:
        done = prepare(
            folder,
            side,
            below,
            tokenizer,
            fillers[side != "train"],
            shards=shards,
            tokens=options.tokens if side == "train" else options.tokens // 2,
            seed=options.seed,
            general=general if side == "train" else (),
        )
        for file in done:
            report(f"cached {file.name} of {shards}")
    return hashes


@torch.no_grad()
def mark_as_keys(memory: BankMemory, *, seed: int) -> None:
    """Marks that compare much as the keys do: the keys' projection, turned and cut to the marks' width."""
    torch.manual_seed(seed)
    weights = memory.head_weight.softmax(dim=0).sqrt().repeat_interleave(memory.width // memory.heads)
    turned = torch.empty(max(len(memory.fade), memory.width), memory.width)
    nn.init.orthogonal_(turned)
    near = memory.context[:, : memory.fade.shape[1]]  # without the topic heads
    memory.fade.copy_(turned[: len(memory.fade)] @ (weights[:, None] * near))


def _stage(
    name: str,
    loaded: LoadedModel,
    layer: int,
    memory: BankMemory,
    pool: Pool,
) -> Stage:
    if name == "keys":
        return KeysStage(memory, pool)
    if name == "marks":
        return MarksStage(memory, pool)
    if name == "gate":
        return GateStage(memory, pool)
    if float(memory.alpha.detach()) == 0.0:
        # From zero, W_om and alpha would wait for each other.
        memory.alpha.data.fill_(8.0)
        memory.read_bias.data.zero_()
    if float(memory.say.detach()) == 0.0:
        # Adapters start open, as nothing that is shut can learn; what is said starts as a strong hint.
        embedding, head = loaded.model.model.embed_tokens.weight, loaded.model.lm_head.weight
        memory.say_out.data.copy_(copy_matrix(memory.unit_rms(embedding.detach()), head.detach()))
        memory.say.data.fill_(SAY_START)
        memory.carry_bias.data.copy_(torch.tensor([1.5, 0.0]))
    return RecallStage(memory, pool, loaded.model, layer=layer)


def write(
    loaded: LoadedModel,
    layer: int,
    memory: BankMemory,
    folder: Path,
    record: dict[str, object],
) -> Path:
    """The checkpoint: the source's configuration with a trained memory, and its parameters."""
    source = read_config(loaded.path)
    known = {key: value for key, value in source.items() if key not in ("files", "model_type")}
    given = {name: getattr(loaded.model.config, name) for name in ("memory_rank", "memory_topics")}
    config = InfiniConfig(**(known | given | {"memory_trained": True}))
    prefix = f"model.layers.{layer}.memory."
    tensors = {prefix + name: value.detach().to(torch.float32) for name, value in memory.named_parameters()}
    extra = {"run.json": json.dumps(record, indent=2) + "\n"}
    write_checkpoint(folder, config, memory=tensors, extra=extra)
    return folder
