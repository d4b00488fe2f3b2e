"""Training a model as it will be used: streamed segment by segment, with its state in and out.

``model(input_ids, labels=labels)`` is the other way ("type I"): every segment inside one forward, the whole
graph kept, any trainer of transformers' drives it. Here ("type II") a row of any length goes through in
pieces of ``segment`` tokens and the gradients come out the same, but the graph of one piece is alive at a
time:

    truncate=None    exact gradients. A first pass without a graph keeps the state at each border; then, last
                     piece first, each is run again, and what its successor wants of its state goes through it
    truncate=k       after every k pieces gradients stop at the state (truncated backpropagation through time)

A token's target is its successor also across a border. At a border the leaving segment is folded into the
memories first, so that with ``window == segment`` what is kept for it is the memories alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.errors import UsageError
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniModel

IGNORED = -100
"""A target that does not count, as in transformers."""


@dataclass(frozen=True, slots=True)
class Counted:
    """``loss``: the sum of the negative log-likelihoods (nats) of ``tokens`` targets, of which ``correct``
    were the most likely token."""

    loss: float
    tokens: int
    correct: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.loss + other.loss, self.tokens + other.tokens, self.correct + other.correct)


@dataclass(frozen=True, slots=True)
class Piece:
    """Columns ``start`` to ``stop`` of a batch: ``ids`` and ``targets`` [B, n], ``mask`` [B, n] or None."""

    ids: Tensor
    targets: Tensor
    mask: Tensor | None


def targets_of(labels: Tensor) -> Tensor:
    """Each token's target: the label [B, T] of its successor; the last token has none."""
    return torch.cat((labels[:, 1:], labels.new_full((labels.shape[0], 1), IGNORED)), dim=1)


def target_count(labels: Tensor) -> int:
    """How many tokens of labels [B, T] have a target."""
    return int((labels[:, 1:] != IGNORED).sum())


def base_of(model: nn.Module) -> InfiniModel:
    """The ``InfiniModel`` inside whatever is wrapped around it (PEFT, data parallelism)."""
    found = next((module for module in model.modules() if isinstance(module, InfiniModel)), None)
    if found is None:
        raise UsageError(
            f"a {type(model).__name__} cannot be streamed: it has no state to hand on. Pass an "
            "InfiniForCausalLM, or one wrapped by PEFT or Accelerate."
        )
    return found


class Streamed:
    """A model as it is trained and measured in pieces of ``segment`` tokens (default: its own segment).

    ``truncate``: pieces that gradients go back through; None: all of them. ``autocast`` gives a context
    that forwards run in (mixed precision)."""

    def __init__(
        self,
        model: nn.Module,
        *,
        segment: int | None = None,
        truncate: int | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.base = model, base_of(model)
        self.segment = segment or self.base.config.segment
        self.truncate, self.autocast = truncate, autocast
        if self.segment < 1 or (truncate is not None and truncate < 1):
            raise UsageError(
                f"segment is {self.segment} and truncate {truncate}; expected at least 1 token and 1 segment."
            )

    def backward(
        self,
        ids: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        divisor: float | None = None,
        cache: InfiniCache | None = None,
    ) -> tuple[Counted, InfiniCache]:
        """Add the gradients of the mean loss to the parameters: ids, labels [B, T] (-100: no target), mask
        [B, T] with 0 at padding, the sum of losses over ``divisor`` (default: the targets here). Starts from
        ``cache`` (default: empty) and returns the state after the last token, outside of the graph, which a
        following text can go on from."""
        pieces = self._pieces(ids, labels, mask)
        divisor = divisor or max(1, target_count(labels))
        cache = self._start(ids, cache)
        if self.truncate is not None:
            return self._truncated(pieces, cache, divisor, self.truncate)
        return self._whole(pieces, cache, divisor)

    @torch.no_grad()
    def evaluate(
        self, ids: Tensor, labels: Tensor, *, mask: Tensor | None = None, cache: InfiniCache | None = None
    ) -> tuple[Counted, InfiniCache]:
        """Loss and accuracy over every segment, not the last one alone; arguments as ``backward``."""
        cache, total = self._start(ids, cache), Counted(0.0, 0, 0)
        for piece in self._pieces(ids, labels, mask):
            total += self._forward(piece, cache)[1]
        return total, cache

    # ---- the two ways back

    def _truncated(
        self, pieces: list[Piece], cache: InfiniCache, divisor: float, truncate: int
    ) -> tuple[Counted, InfiniCache]:
        total, waiting = Counted(0.0, 0, 0), 0
        pending: Tensor | None = None
        for number, piece in enumerate(pieces, 1):
            loss, counted = self._forward(piece, cache)
            pending = loss if pending is None else pending + loss
            total, waiting = total + counted, waiting + counted.tokens
            if number % truncate == 0 or number == len(pieces):
                if waiting:
                    (pending / divisor).backward()  # type: ignore[no-untyped-call]
                cache.detach()
                pending, waiting = None, 0
        return total, cache

    def _whole(self, pieces: list[Piece], cache: InfiniCache, divisor: float) -> tuple[Counted, InfiniCache]:
        borders = [(cache.clone(), _random_state(cache.device))]
        with torch.no_grad():
            for piece in pieces[:-1]:
                self._forward(piece, cache, logits=self._random)
                borders.append((cache.clone(), _random_state(cache.device)))
        after = _random_state(cache.device)
        total, wanted, end = Counted(0.0, 0, 0), None, None
        for number in reversed(range(len(pieces))):
            state, random_state = borders.pop()
            leaves = state.flowing()
            for leaf in leaves:
                leaf.requires_grad_(number > 0)
            _set_random_state(random_state, cache.device)
            loss, counted = self._forward(pieces[number], state)
            if number == len(pieces) - 1:
                after = _random_state(cache.device)
            _backward(loss / divisor, state.flowing(), wanted)
            total, wanted = total + counted, [leaf.grad for leaf in leaves]
            if end is None:
                end = state
                end.detach()
        _set_random_state(after, cache.device)
        assert end is not None
        return total, end

    # ---- one piece

    def _forward(self, piece: Piece, cache: InfiniCache, *, logits: bool = True) -> tuple[Tensor, Counted]:
        """Feed a piece and settle the state: the sum of its losses. Without ``logits`` only the state."""
        with self.autocast():
            out = self.model(
                input_ids=piece.ids,
                attention_mask=piece.mask,
                past_key_values=cache,
                logits_to_keep=0 if logits else 1,
            )
            self.base.evict(cache)
        if not logits:
            return out.logits.new_zeros(()), Counted(0.0, 0, 0)
        flat, targets = out.logits.float().flatten(0, 1), piece.targets.flatten()
        if out.logits.dtype == torch.float64:
            flat = out.logits.flatten(0, 1)
        loss = F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
        real = targets != IGNORED
        correct = int(((flat.detach().argmax(dim=-1) == targets) & real).sum())
        return loss, Counted(float(loss.detach()), int(real.sum()), correct)

    def _pieces(self, ids: Tensor, labels: Tensor, mask: Tensor | None) -> list[Piece]:
        targets, size = targets_of(labels), self.segment
        return [
            Piece(
                ids[:, at : at + size],
                targets[:, at : at + size],
                None if mask is None else mask[:, at : at + size],
            )
            for at in range(0, ids.shape[1], size)
        ]

    def _start(self, ids: Tensor, cache: InfiniCache | None) -> InfiniCache:
        return self.base.new_cache(ids.shape[0]) if cache is None else cache.clone()

    @property
    def _random(self) -> bool:
        """Whether a forward draws random numbers: then both passes have to make the very same calls."""
        return self.model.training and any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules()
        )


def _backward(loss: Tensor, ends: list[Tensor], wanted: list[Tensor | None] | None) -> None:
    """Backward from a piece's loss and from its final state, whose gradients are ``wanted``."""
    tensors, gradients = [loss], [torch.ones_like(loss)]
    for end, gradient in zip(ends, wanted or [None] * len(ends), strict=True):
        if gradient is not None and end.requires_grad:
            tensors.append(end)
            gradients.append(gradient)
    torch.autograd.backward(tensors, gradients)


RandomState = tuple[Tensor, Tensor | None]


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode for a while."""
    was = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was)
