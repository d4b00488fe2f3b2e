"""Rows in C: where each conversation's window and residual are, and which thread runs which rows.

A single row runs on the calling thread. Of several, each thread takes its share through all layers between
two memories, with scratch memory of its own: nothing is waited for in between, and each thread reads every
weight once for all of its rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from infinichat.engine.quantize import GROUP
from infinichat.engine.structures import Model, Rounded, Row, Scratch, Window
from infinichat.model.cache import InfiniCache


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the scratch memory: see ``step.c``."""

    wide: int
    tall: int
    slots: int


class Runner:
    """Calls the compiled functions for rows, on ``torch.get_num_threads()`` threads at most."""

    def __init__(self, library: ctypes.CDLL, model: Model, sizes: Sizes) -> None:
        self._library, self._model, self._sizes = library, model, sizes
        self._scratch: list[_Scratch] = []  # one for each thread
        self._pool: ThreadPoolExecutor | None = None

    def run(self, rows: ctypes.Array[Row], first: int, last: int, *, is_bf16: bool) -> None:
        """Half-layers ``first`` to ``last`` - 1 of all ``rows``."""

        def work(scratch: _Scratch, start: int, count: int) -> None:
            at = ctypes.byref(rows, start * ctypes.sizeof(Row))
            self._library.infini_run(
                ctypes.byref(self._model), scratch.pointer, first, last, at, count, int(is_bf16)
            )

        self._shared(work, len(rows))

    def norm(self, h: Tensor) -> Tensor:
        """The final norm of h [B, 1, C]: [B, C]."""
        hidden = torch.empty(h.shape[0], h.shape[2])
        self._library.infini_norm(ctypes.byref(self._model), h.data_ptr(), hidden.shape[0], hidden.data_ptr())
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Scores [B, V] for final states [B, C]."""
        wide = hidden.float().contiguous()
        scores = torch.empty(wide.shape[0], self._model.head.rows)

        def work(scratch: _Scratch, start: int, count: int) -> None:
            end = start + count
            self._library.infini_head(
                ctypes.byref(self._model),
                scratch.pointer,
                wide[start:end].data_ptr(),
                count,
                scores[start:end].data_ptr(),
            )

        self._shared(work, wide.shape[0])
        return scores

    def _shared(self, work: Callable[[_Scratch, int, int], None], count: int) -> None:
        """``work`` with scratch memory, first row and number of rows, for all ``count`` rows."""
        parts = min(count, torch.get_num_threads())
        ends = [count * (part + 1) // parts for part in range(parts)]
        starts = [0, *ends[:-1]]
        for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if part == len(self._scratch):
                self._scratch.append(_Scratch(self._sizes))
            self._scratch[part].reserve(end - start)
        if parts > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=63, thread_name_prefix="rows")
        others = [
            self._pool.submit(work, self._scratch[part], starts[part], ends[part] - starts[part])
            for part in range(1, parts)
            if self._pool is not None
        ]
        work(self._scratch[0], 0, ends[0])
        for other in others:
            other.result()


class _Scratch:
    """Scratch memory of one thread; ``reserve`` makes room for more rows."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._rows = 0
        self._kept: tuple[Tensor, ...] = ()
        self._rounded: ctypes.Array[Rounded] | None = None
        self._c = Scratch()

    @property
    def pointer(self) -> object:
        """What C takes."""
        return ctypes.byref(self._c)

    def reserve(self, rows: int) -> None:
        if rows <= self._rows:
            return
        sizes = self._sizes
        x, y = torch.zeros(rows, sizes.wide), torch.zeros(rows, sizes.tall)
        scores = torch.zeros(sizes.slots)
        bytes_ = torch.zeros(2, rows, sizes.wide, dtype=torch.int8)
        numbers = torch.zeros(2, rows, sizes.wide // GROUP + 1)
        self._kept = (x, y, scores, bytes_, numbers)
        self._rounded = (Rounded * rows)(
            *(
                Rounded(*(part[row].data_ptr() for part in (*bytes_, *numbers)))  # coarse, fine, scales, sums
                for row in range(rows)
            )
        )
        self._c = Scratch(
            sizes.wide, sizes.tall, x.data_ptr(), y.data_ptr(), scores.data_ptr(), self._rounded
        )
        self._rows = rows


class Places:
    """Where caches keep their keys and values, remembered as long as that stays so."""

    def __init__(self, front: int) -> None:
        self._front = front
        self._of: WeakKeyDictionary[InfiniCache, _Windows] = WeakKeyDictionary()

    def rows(
        self, caches: Sequence[InfiniCache], h: Tensor, normed: Tensor, cosine: Tensor, sine: Tensor
    ) -> ctypes.Array[Row]:
        """A row for the next token of each cache: h and ``normed`` [B, 1, C], ``cosine`` and ``sine``
        [B, D / 2], which have to live as long as the rows."""
        rows = (Row * len(caches))()
        for at, (row, cache) in enumerate(zip(rows, caches, strict=True)):
            front = cache.evicted > 0 and self._front > 0
            windows = self._of.get(cache)
            if windows is None or not windows.valid(cache, front):
                windows = self._of[cache] = _Windows(cache, front)
            row.h, row.normed = h[at].data_ptr(), normed[at].data_ptr()
            row.windows = windows.array
            row.cosine, row.sine = cosine[at].data_ptr(), sine[at].data_ptr()
            row.slots = cache.window_tokens + 1 + (self._front if front else 0)
        return rows


class _Windows:
    """Where the keys and values of a cache are, for as long as its buffers stay the same."""

    def __init__(self, cache: InfiniCache, front: bool) -> None:
        slots = [one for state in cache.states for one in (state.k, state.v)]
        for one in slots:
            one.reserve()
        self._buffers = [one.buffer for one in slots]
        self._front = front
        self.array = (Window * len(cache.states))()
        for window, state in zip(self.array, cache.states, strict=True):
            skipped = 0 if front else state.k.front
            dim = state.k.buffer.shape[3]
            skip = skipped * dim * state.k.buffer.element_size()
            window.k, window.v = state.k.buffer.data_ptr() + skip, state.v.buffer.data_ptr() + skip
            window.stride = state.k.buffer.shape[2] * dim

    def valid(self, cache: InfiniCache, front: bool) -> bool:
        """Whether the cache still has these buffers, with a spare slot in them."""
        if front != self._front:
            return False
        slots = (one for state in cache.states for one in (state.k, state.v))
        return all(one.buffer is kept for one, kept in zip(slots, self._buffers, strict=True))
