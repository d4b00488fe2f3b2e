"""Rows of cached streams run through a memory and the layers above it, as the product would: what a read adds
to the residual, what it carries on, and the final states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.corpus.conversations import Asked
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.plain import Past, decode
from infinichat.training.pool import Pool
from infinichat.training.reading import Bank, follow, project, read, seen_along


@dataclass(frozen=True, slots=True)
class Row:
    """``length`` tokens from place ``start`` on with their ``bank``, and the places in it that are
    ``asked``."""

    start: int
    length: int
    bank: Bank
    asked: Sequence[Asked] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """A row that should stay the base's: at the places ``judged`` its distributions are compared, and where
    it is ``silent`` [length] nothing should be added."""

    row: Row
    judged: Sequence[int]
    silent: Tensor


class Rows:
    """Runs rows of ``pool`` through ``memory`` in front of ``layer`` of ``model`` and the layers above."""

    def __init__(self, memory: BankMemory, pool: Pool, model: InfiniForCausalLM, layer: int) -> None:
        self.memory, self.pool, self.model, self.layer = memory, pool, model, layer

    def read(self, row: Row) -> tuple[Tensor, Carried, Tensor]:
        """What the memory adds to the row's own tokens [n, C], what it carries on for them, and the share
        [n] of their own energy that is added."""
        places, bank = torch.arange(row.start, row.start + row.length), row.bank
        with torch.no_grad():
            # What this stream tells itself is there when the token after it has been read.
            own = (bank.places >= row.start) & (bank.places < row.start + row.length)
            unseen = own[None] & (bank.places[None] + 1 >= places[:, None])
            queries = project(self.memory, seen_along(self.memory, self.pool, row.start, row.length))
            p = read(self.memory, bank, queries, unseen=unseen).exp()
            p, going, ended = follow(self.pool, bank, places, p, unseen=unseen)
            values = p[:, :-1] @ self.pool.values(bank.ids)
            something = (~unseen.all(dim=1, keepdim=True)).float()
        got, carried = self.memory.added(
            self.pool.inputs(places), values, p[:, -1:], ended[:, None], going[:, None], something
        )
        own_energy = self.pool.hidden[places].float().square().sum(dim=-1).clamp(min=1.0)
        return got, carried, got.square().sum(dim=-1) / own_energy

    def added(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Carried, list[Tensor]]:
        """Padded states [B, T, C], what the memory adds to them and carries on, and its share of the rows'
        own energy."""
        longest = max(row.length for row in rows)
        hidden, added, kept, energy = [], [], [], []
        for row in rows:
            got, carried, share = self.read(row)
            rest = (0, 0, 0, longest - row.length)
            hidden.append(F.pad(self.pool.hidden[row.start : row.start + row.length], rest))
            added.append(F.pad(got, rest))
            kept.append([F.pad(t, rest) for t in (carried.opened, carried.values, carried.wish)])
            energy.append(share)
        opened, values, wish = (torch.stack(parts) for parts in zip(*kept, strict=True))
        carried = Carried(carried.adapters, opened, values, wish, carried.by_final, carried.scale)
        states = torch.stack(hidden).to(self.model.model.norm.weight.dtype)
        return states, torch.stack(added), carried, energy

    def upper(
        self,
        hidden: Tensor,
        added: Tensor | None = None,
        carried: Carried | None = None,
        past: Past = (),
    ) -> Tensor:
        """The final states; without ``added`` those of the base."""
        last = self.model.config.num_hidden_layers
        final = decode(
            self.model, hidden, first=self.layer, last=last, added=added, carried=carried, past=past
        )
        normed: Tensor = self.model.model.norm(final)
        return normed if carried is None else carried.spoken(normed)
