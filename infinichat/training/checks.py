"""How much a memory recalls on cached streams: a line for the log while it is trained.

Reads of the bank alone, token by token with the right answer before each (teacher forced): quick, and a
little kinder than real conversations, which ``infinichat eval`` measures.
"""

from __future__ import annotations

import random

import torch

from infinichat.model.bank_memory import BankMemory
from infinichat.training.pool import Pool
from infinichat.training.reading import project, read, stray_tokens, write


@torch.no_grad()
def recall_on(
    memory: BankMemory, pool: Pool, *, facts: int, questions: int, seed: int = 0
) -> dict[str, float]:
    """Shares over at least ``questions`` questions in memories of ``facts`` facts: ``recall`` of values told
    once and ``updated`` of corrected ones, all their tokens right; ``refused`` of both; ``unknown``
    admitted."""
    rng = random.Random(f"{seed}/{facts}")
    once: list[bool] = []
    updated: list[bool] = []
    refused: list[bool] = []
    unknown: list[bool] = []
    while len(once) + len(updated) < questions:
        episode = pool.episode(facts, rng)
        if not episode.asked:
            break
        bank = write(memory, pool, episode, stray_tokens(pool, 8, rng))
        for a in episode.asked:
            places = torch.arange(a.value - 1, a.value + a.count - 1)
            best = read(memory, bank, project(memory, pool.around(places))).exp()
            tokens, null = _by_token(best[:, :-1], bank.ids), best[:, -1]
            share = torch.stack(
                [tokens.get(int(i), null.new_zeros(len(places))) for i in pool.ids[places + 1]]
            )
            top = torch.stack(list(tokens.values())).max(dim=0).values
            right = bool(((share.diagonal() >= top) & (share.diagonal() > null)).all())
            (updated if a.version else once).append(right)
            refused.append(bool(null[0] > 0.5))
        strange = torch.tensor([a.value - 1 for a in episode.strangers], dtype=torch.long)
        weights = read(memory, bank, project(memory, pool.around(strange))).exp()
        unknown += (weights[:, -1] > 0.5).tolist()
    named = {"recall": once, "updated": updated, "refused": refused, "unknown": unknown}
    return {name: sum(values) / max(1, len(values)) for name, values in named.items()}


def _by_token(weights: torch.Tensor, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Weights [n, slots] summed over the slots of each token: token to [n]."""
    tokens, place = torch.unique(ids, return_inverse=True)
    summed = weights.new_zeros(len(weights), len(tokens)).index_add_(1, place, weights)
    return dict(zip(tokens.tolist(), summed.T, strict=True))
