"""What new tokens show of those before them: a bank memory writes a token once the next one has been read."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LookedBack:
    """For T tokens their projections ``projected`` [B, T, K], and of the token before each: what it is stored
    under, ``keys`` [B, T, K], what that was projected from, ``before`` [B, T, 10 C], its value ``tokens``
    [B, T, C], its id in ``ids`` [B, T], how strongly it is written, ``strength`` [B, T], and whether the one
    before it was, ``joined`` [B, T]."""

    projected: Tensor
    keys: Tensor
    before: Tensor
    tokens: Tensor
    ids: Tensor
    strength: Tensor
    joined: Tensor

    def row(self, at: int) -> LookedBack:
        """One conversation's, as views."""
        return LookedBack(*(getattr(self, field.name)[at : at + 1] for field in fields(self)))
