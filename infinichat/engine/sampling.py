"""The next id from logits: repetition penalty, temperature, top-k, top-p, min-p, in that order.

A ``Sampler`` belongs to one call of ``generate``: it owns a seeded generator and remembers the ids that were
generated in this call, so nothing leaks from one answer into another. The vocabulary is never sorted as a
whole where a part of it is enough: with top-k only k candidates are looked at, and top-p alone looks at the
256 likeliest first and at more only when they do not hold enough probability.

    Sampler(SamplingOptions(temperature=0)).next_id(logits)     the likeliest id
"""

from __future__ import annotations

import secrets
from collections import deque

import torch
from torch import Tensor

from infinichat.errors import ModelError
from infinichat.messages import SamplingOptions

FIRST_CANDIDATES = 256
"""How many of the likeliest ids top-p looks at first. They hold 0.95 of the probability for nearly every
token of ordinary text; taking 256 of 49,152 costs a tenth of sorting them."""


class Sampler:
    """Draws ids for one answer. ``seed`` None draws a fresh seed; equal seeds give equal ids."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._recent: deque[int] = deque(maxlen=max(0, options.repetition_window))
        self._generator = torch.Generator()
        self._generator.manual_seed(secrets.randbits(63) if options.seed is None else options.seed)

    def next_id(self, logits: Tensor) -> int:
        """The next id for logits [V]; raises ``ModelError`` when the best logit is not a finite number."""
        scores = logits.detach().to("cpu", torch.float32)
        if self.options.temperature <= 0:
            best = int(scores.argmax())
            _require_finite(scores[best])
            return best
        scores = penalised(scores, self._recent, self.options.repetition_penalty)
        ids, probabilities = candidates(scores / self.options.temperature, self.options)
        drawn = int(torch.multinomial(probabilities, 1, generator=self._generator))
        chosen = drawn if ids is None else int(ids[drawn])
        if self._recent.maxlen:
            self._recent.append(chosen)
        return chosen


def penalised(scores: Tensor, recent: deque[int], penalty: float) -> Tensor:
    """Scores [V] with those of the ``recent`` ids divided (where positive) or multiplied by ``penalty``."""
    if penalty == 1.0 or not recent:
        return scores
    ids = torch.tensor(sorted(set(recent)))
    old = scores[ids]
    return scores.index_copy(0, ids, torch.where(old > 0, old / penalty, old * penalty))


def candidates(scores: Tensor, options: SamplingOptions) -> tuple[Tensor | None, Tensor]:
    """Ids [N] and their probabilities [N], likeliest first, after top-k, top-p and min-p; ids None means that
    all ids are candidates, in order. The probabilities of what is left need not sum to one."""
    size = scores.shape[-1]
    top_k = min(options.top_k, size) if options.top_k > 0 else 0
    _require_finite(scores.max())
    ids: Tensor | None = None
    if top_k:
        values, ids = scores.topk(top_k)
        probabilities = torch.softmax(values, dim=-1)
    else:
        probabilities = torch.softmax(scores, dim=-1)
        if options.top_p < 1:
            probabilities, ids = _likeliest(probabilities, options.top_p)
    if ids is not None and options.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        # The likeliest id always stays, also when top_p is 0.
        count = max(1, int((before < options.top_p).sum()))
        ids, probabilities = ids[:count], probabilities[:count]
    if options.min_p > 0:
        keep = probabilities >= min(options.min_p, 1.0) * probabilities.max()
        if ids is None:
            ids = keep.nonzero().squeeze(-1)
            return ids, probabilities[ids]
        ids, probabilities = ids[keep], probabilities[keep]
    return ids, probabilities


def _likeliest(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest ids, in blocks that quadruple, that hold ``mass`` of the probability; sorted."""
    size, count = probabilities.shape[-1], FIRST_CANDIDATES
    while count < size:
        values, ids = probabilities.topk(count)
        if float(values.sum()) >= mass:
            return values, ids
        count *= 4
    values, ids = probabilities.sort(descending=True)
    return values, ids


def _require_finite(best: Tensor) -> None:
    if not bool(torch.isfinite(best)):
        raise ModelError(
            f"The model's best logit is {float(best)}, expected a finite number. The state or the weights "
            "are damaged. Next: run 'infinichat models verify', then ask again."
        )
