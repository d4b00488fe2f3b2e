"""``perplexity``: a held-out book by position, with the memory on, off, and as the base with full attention.

The book is read from its start as plain text, each token predicted from what is before it. Buckets double in
length: up to 1,024 tokens, to 2,048, to 4,096 and so on to the longest of the lengths asked for. The base
with full attention sees everything before a token, and ends where the model was trained to (8,192 tokens).
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.evals.bench import Bench
from infinichat.evals.conditions import without_memory
from infinichat.evals.filler import FillerText
from infinichat.evals.peers import base_of
from infinichat.evals.task import Cell, Memory, Options, Report
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM

FIRST_BUCKET = 1024
PIECE = 256


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by position; ``samples`` books at most. ``loss`` is nats a token, ``n`` counts tokens."""
    filler = FillerText(options.filler)
    model, tokenizer = bench.engine.model, bench.engine.tokenizer
    longest = max(options.lengths)
    books = books_of(filler, min(options.samples, max(1, len(filler.books))), options.seed)
    found: list[Cell] = []
    readers: list[tuple[Memory, str]] = [
        (use, f"memory {use}") for use in options.memory if use in ("on", "off")
    ]
    readers.append(("off", "base, full attention"))
    plain = base_of(bench.engine).model
    for use, name in readers:
        sums: dict[int, list[float]] = {}
        for title, text in books:
            # Four characters a token is more than any text needs here.
            ids = tokenizer.encode(text[: 8 * longest])[:longest]
            if name.startswith("base"):
                ids = ids[: model.config.max_position_embeddings]
                losses = full_losses(plain, ids)
            else:
                cache = bench.engine.new_state()
                losses = streamed_losses(model, cache if use == "on" else without_memory(cache), ids)
            for end, part in zip(bucket_ends(len(ids)), buckets(losses), strict=True):
                sums.setdefault(end, []).extend([float(part.sum()), float(part.numel())])
            bench.say(f"{name}: {title}, {len(ids):,} tokens, loss {float(losses.mean()):.4f}")
        for end, numbers in sums.items():
            count = int(sum(numbers[1::2]))
            loss = sum(numbers[::2]) / count
            extra = {"model": name, "loss": loss, "perplexity": math.exp(loss)}
            found.append(Cell(end, None, None, use, n=count, extra=extra))
    notes = [*filler.notes, f"books: {', '.join(title for title, _ in books)}"]
    return Report("perplexity", bench.engine.info.name, options.seed, found, notes)


def books_of(filler: FillerText, count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` different books."""
    rng = random.Random(f"{seed}/perplexity")
    return rng.sample(filler.books, count) if filler.books else [filler.book(rng)]


@torch.inference_mode()
def streamed_losses(model: InfiniForCausalLM, cache: InfiniCache, ids: list[int]) -> Tensor:
    """Nats for each token after the first [T - 1], streamed through ``cache`` in pieces."""
    found: list[Tensor] = []
    for start in range(0, len(ids) - 1, PIECE):
        piece = ids[start : min(start + PIECE, len(ids) - 1)]
        logits = model(torch.tensor([piece], device=cache.device), past_key_values=cache).logits[0]
        wanted = torch.tensor(ids[start + 1 : start + 1 + len(piece)], device=cache.device)
        found.append(F.cross_entropy(logits.float(), wanted, reduction="none"))
    return torch.cat(found)


def full_losses(model: InfiniForCausalLM, ids: list[int]) -> Tensor:
    """The same for a base with everything in its window: a window as long as the text and no memory."""
    config = copy.copy(model.config)
    own = model.config.window, model.config.segment
    config.window = max(len(ids), own[0])
    wide = InfiniCache(config, dtype=model.model.norm.weight.dtype, device=model.model.norm.weight.device)
    try:
        model.config.window = config.window
        return streamed_losses(model, without_memory(wide), ids)
    finally:
        model.config.window, model.config.segment = own


def bucket_ends(count: int) -> list[int]:
    """Where buckets end for ``count`` tokens: 1,024, 2,048, 4,096, …, the last one at ``count``."""
    ends, end = [], FIRST_BUCKET
    while end < count:
        ends.append(end)
        end *= 2
    return [*ends, count] if count > 1 else []


def buckets(losses: Tensor) -> list[Tensor]:
    """Losses [T - 1] of tokens 1 … T - 1, cut at ``bucket_ends(T)``."""
    ends = bucket_ends(losses.shape[0] + 1)
    starts = [1, *ends]
    return [losses[start - 1 : end - 1] for start, end in zip(starts, ends, strict=False)]
