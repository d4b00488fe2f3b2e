"""A tensor that grows at its end and shrinks at its front: the window of a layer's keys, values and the like.

Without gradients it appends in place into spare room, because decoding must not copy the window at every
token. With gradients every change makes a new tensor: autograd keeps views of what attention has read, even
of keys that need no gradient themselves, and those must never change under it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Slots:
    """Slots along ``dim`` of a tensor. ``front`` slots at its start are kept apart from the content, for the
    attention sinks; ``limit`` is how many content slots there usually are at most."""

    __slots__ = ("_buffer", "dim", "front", "length", "limit")

    def __init__(self, buffer: Tensor, *, dim: int, limit: int, front: int = 0) -> None:
        self._buffer = buffer
        self.dim = dim
        self.front = front
        self.limit = limit
        self.length = buffer.shape[dim] - front

    @property
    def content(self) -> Tensor:
        """The filled slots, oldest first; a view."""
        return self._buffer.narrow(self.dim, self.front, self.length)

    @property
    def with_front(self) -> Tensor:
        """The front slots and the filled ones; a view."""
        return self._buffer.narrow(self.dim, 0, self.front + self.length)

    @property
    def whole(self) -> Tensor:
        """The front slots and the filled ones; the buffer itself where there is no spare room."""
        full = self._buffer.shape[self.dim] == self.front + self.length
        return self._buffer if full else self.with_front

    @property
    def buffer(self) -> Tensor:
        """The whole tensor: front, filled and spare slots. Who writes the next spare slot in place counts it
        by adding to ``length``."""
        return self._buffer

    def append(self, new: Tensor) -> None:
        """Add slots at the end."""
        end = self.front + self.length
        count = new.shape[self.dim]
        if torch.is_grad_enabled():
            self._buffer = torch.cat((self._buffer.narrow(self.dim, 0, end), new), dim=self.dim)
        else:
            if end + count > self._buffer.shape[self.dim]:
                self._grow(end + count)
            self._buffer.narrow(self.dim, end, count).copy_(new)
        self.length += count

    def reserve(self) -> None:
        """Make room for ``limit`` slots at once, so that the memory layout never depends on how the content
        came: the same products then run on the same strides, to the last bit."""
        if self._buffer.shape[self.dim] < self.front + self.limit:
            self._grow(self.front + self.limit)

    def drop(self, count: int) -> None:
        """Remove the oldest ``count`` slots; the front stays."""
        kept = self.length - count
        old = self._buffer.narrow(self.dim, self.front + count, kept)
        if torch.is_grad_enabled():
            self._buffer = torch.cat((self._buffer.narrow(self.dim, 0, self.front), old), dim=self.dim)
        else:
            # The two ranges may overlap.
            self._buffer.narrow(self.dim, self.front, kept).copy_(old.clone())
        self.length = kept

    def set_front(self, value: Tensor) -> None:
        """Replace the front slots."""
        if torch.is_grad_enabled():
            self._buffer = torch.cat((value, self.content), dim=self.dim)
        else:
            self._buffer.narrow(self.dim, 0, self.front).copy_(value)

    def select_rows(self, rows: Tensor) -> None:
        """Keep and reorder batch rows."""
        self._buffer = self.with_front.index_select(0, rows)

    def detach(self) -> None:
        """Cut from the graph, in a buffer of its own."""
        self._buffer = self.with_front.detach().clone()

    def clone(self) -> Slots:
        """An independent copy without spare room, outside the graph."""
        return Slots(self.with_front.detach().clone(), dim=self.dim, limit=self.limit, front=self.front)

    def _grow(self, needed: int) -> None:
        # Doubling up to the usual limit keeps short conversations small. Beyond it (padding takes slots too)
        # an eighth more at a time, so that no append copies everything.
        limit = self.front + self.limit
        size = min(2 * needed, limit) if needed <= limit else needed + needed // 8
        shape = list(self._buffer.shape)
        shape[self.dim] = size
        grown = self._buffer.new_zeros(shape)
        filled = self.front + self.length
        grown.narrow(self.dim, 0, filled).copy_(self._buffer.narrow(self.dim, 0, filled))
        self._buffer = grown
