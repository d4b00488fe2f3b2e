"""The next id from logits: repetition penalty, DRY, temperature, top-k, top-p, min-p, in that order.

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


LONGEST_MATCH = 64
"""Ids that are compared with what was said before; more would not make a repetition any less likely."""


class Sampler:
    """Draws ids for one answer. ``seed`` None draws a fresh seed; equal seeds give equal ids."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._recent: deque[int] = deque(maxlen=max(0, options.repetition_window))
        self._said = Said()
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
        if self.options.dry_multiplier > 0:
            scores = self._without_repeats(scores)
        ids, probabilities = candidates(scores / self.options.temperature, self.options)
        drawn = int(torch.multinomial(probabilities, 1, generator=self._generator))
        chosen = drawn if ids is None else int(ids[drawn])
        if self._recent.maxlen:
            self._recent.append(chosen)
        self._said.add(chosen)
        return chosen

    def _without_repeats(self, scores: Tensor) -> Tensor:
        """Scores [V] less what DRY takes from ids that would say once more what was said."""
        least, base = self.options.dry_allowed_length, self.options.dry_base
        found = {token: n for token, n in self._said.matches().items() if n >= least}
        if not found:
            return scores
        less = [self.options.dry_multiplier * base ** (n - least) for n in found.values()]
        return scores.index_add(0, torch.tensor(list(found)), -torch.tensor(less))


class Said:
    """The ids of an answer so far, and what would repeat them."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._places: dict[int, list[int]] = {}

    def add(self, token: int) -> None:
        """One more id."""
        self._places.setdefault(token, []).append(len(self._ids))
        self._ids.append(token)

    def matches(self) -> dict[int, int]:
        """For each id that came after an earlier place where the last id stands: how many ids up to there are
        the same as the last ones, at the place where that is most, up to ``LONGEST_MATCH``."""
        ids, last = self._ids, len(self._ids) - 1
        found: dict[int, int] = {}
        for place in self._places.get(ids[last], ())[:-1] if ids else ():
            n = 1
            while n < LONGEST_MATCH and n <= place and ids[place - n] == ids[last - n]:
                n += 1
            found[ids[place + 1]] = max(n, found.get(ids[place + 1], 0))
        return found


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
