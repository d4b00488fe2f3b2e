"""Tokens that the layers above a memory have not seen yet, as a part of the state (``reading``)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.layer_state import TensorSpec


@dataclass(slots=True)
class Pending:
    """Tokens that the layers from ``layer`` on have not seen: their inputs ``hidden`` [B, n, C], by how much
    what was read from the memory opens the changes there, ``opened`` [B, n, 1], and of the last token what
    is carried on to be said, ``values`` [B, 1, C] and ``wish`` [B, 1, 1] (``adapters.Carried``)."""

    layer: int
    hidden: Tensor
    opened: Tensor
    values: Tensor
    wish: Tensor

    def named(self) -> dict[str, Tensor]:
        """The tensors by name; views, not copies."""
        return {name: getattr(self, name) for name in PENDING}

    def clone(self) -> Pending:
        """A copy that shares nothing, outside the graph."""
        return Pending(self.layer, *(tensor.detach().clone() for tensor in self.named().values()))

    def select_rows(self, rows: Tensor) -> Pending:
        """The batch rows ``rows`` [N], in that order."""
        return Pending(self.layer, *(tensor.index_select(0, rows) for tensor in self.named().values()))


PENDING = ("hidden", "opened", "values", "wish")


def pending_tensors(config: InfiniConfig, *, batch: int, tokens: int) -> dict[str, TensorSpec]:
    """What the tensors of a state with so many pending ``tokens`` look like."""
    return {
        "hidden": TensorSpec((batch, tokens, config.hidden_size)),
        "opened": TensorSpec((batch, tokens, 1), "wide"),
        "values": TensorSpec((batch, 1, config.hidden_size), "wide"),
        "wish": TensorSpec((batch, 1, 1), "wide"),
    }


def first_above(config: InfiniConfig) -> int | None:
    """The first layer that reading can leave out; None when there is none, or more than one memory."""
    single = config.memory_trained and len(config.memory_layers) == 1
    if not single or config.memory not in ("bank", "recall"):
        return None
    first = config.memory_layers[0] + 1
    return first if first < config.num_hidden_layers else None
