"""``chat``: what the memory costs in ordinary talk. Held-out dialogues and instructions, loss on the answers.

The state of each starts with a memory full of another conversation (facts, then filler) and an empty window,
and the same dialogue is read by the base model, without memory and adapters. Dialogues are cut to what fits
the window, so that nothing but what was trained differs."""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.facts import FactMaker
from infinichat.engine.generate import InfiniEngine
from infinichat.errors import UsageError
from infinichat.evals.bench import Bench
from infinichat.evals.conditions import swapped
from infinichat.evals.filler import FillerText, Stretch, alternating
from infinichat.evals.peers import base_of
from infinichat.evals.streaming import least_tail
from infinichat.evals.task import Cell, Memory, Options, Report
from infinichat.evals.telling import as_messages, distinct_facts
from infinichat.model.cache import InfiniCache

TRIES = 100


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """One cell for each number of facts in the memory and each condition; ``n`` counts answers' tokens."""
    filler, plain = FillerText(options.filler), base_of(bench.engine)
    found: list[Cell] = []
    for count in options.facts:
        rng = random.Random(f"{options.seed}/chat/{count}")
        dirty = dirty_memory(bench, filler, count, rng)
        conditions: tuple[tuple[Memory, str], ...] = (("on", "memory, dirty"), ("off", "base"))
        sums = {name: [0.0, 0] for _, name in conditions}
        rows = [dialogue_ids(bench, filler, rng) for _ in range(options.samples)]
        for ids, mask in rows:
            for use, name in conditions:
                engine = bench.engine if use == "on" else plain
                state = swapped(engine.new_state(), dirty) if use == "on" else engine.new_state()
                losses = answer_losses(engine, state, ids, mask)
                sums[name][0] += float(losses.sum())
                sums[name][1] += losses.numel()
        for use, name in conditions:
            total, tokens = sums[name]
            loss = total / max(1, tokens)
            extra = {"model": name, "loss": loss, "perplexity": math.exp(loss)}
            if use == "on":
                extra["over the base"] = loss / (sums["base"][0] / max(1, sums["base"][1])) - 1
            found.append(Cell(None, None, count, use, n=int(tokens), extra=extra))
            bench.say(f"chat with {count} facts, {name}: {loss:.4f}")
    return Report("chat", bench.engine.info.name, options.seed, found, list(filler.notes))


def dirty_memory(bench: Bench, filler: FillerText, count: int, rng: random.Random) -> InfiniCache:
    """A state whose memory holds ``count`` facts of somebody else and what filler wrote."""
    maker = FactMaker("seen")
    line = bench.new_conversation()
    for message in as_messages([maker.tell(rng, f) for f in distinct_facts(maker, count, rng)], rng):
        line.tell(message)
    line.feed(Stretch(filler, "dialogues", rng).take(line, least_tail(bench.engine.model)))
    return line.cache


def dialogue_ids(bench: Bench, filler: FillerText, rng: random.Random) -> tuple[list[int], list[int]]:
    """A dialogue's ids and its loss mask, no longer than the window; one with words of an answer in it."""
    window = bench.engine.info.window
    for _ in range(TRIES):
        if filler.dialogues:
            messages = list(alternating(rng.choice(filler.dialogues)))
        else:
            source = filler.messages(rng)
            messages = [next(source) for _ in range(4)]
        encoded = bench.format.encode_conversation(messages)
        if any(encoded.loss_mask[:window]):
            return list(encoded.ids[:window]), list(encoded.loss_mask[:window])
    raise UsageError(f"no answer of the filler's dialogues begins within the window of {window} tokens")


@torch.inference_mode()
def answer_losses(engine: InfiniEngine, state: InfiniCache, ids: list[int], mask: list[int]) -> Tensor:
    """Nats of the tokens that ``mask`` marks."""
    logits = engine.model(torch.tensor([ids], device=state.device), past_key_values=state).logits[0]
    losses = F.cross_entropy(
        logits[:-1].float(), torch.tensor(ids[1:], device=state.device), reduction="none"
    )
    return losses[torch.tensor(mask[1:], dtype=torch.bool, device=state.device)]
