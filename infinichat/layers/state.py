"""What a layer remembers between two calls: a value that goes in and comes out, never on the module.

An ``InfiniState`` is the memory, the tokens still in the window, and how many tokens have been fed. Feeding a
sequence in pieces, state in and state out, gives what feeding it at once gives; a state can be kept, copied,
cut from the graph, saved as tensors, or given to several continuations, and no call changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from infinichat.attention.memory import MemoryState


@dataclass(frozen=True, slots=True)
class InfiniState:
    """The state of B sequences in one layer with Hkv key-value heads.

    ``memory``: M [B, Hkv, Dk, Dv], z [B, Hkv, Dk] in float32 (float64 under float64 weights), written [B].
    ``keys`` [B, Hkv, n, Dk] without position and ``values`` [B, Hkv, n, Dv]: the window, oldest first.
    ``seen`` [B] int64: positions fed so far. ``positions`` [B, n]: where the window's tokens stand, -1 at
    padding, which comes last; None where every row's window is its n newest tokens, without gaps.
    """

    memory: MemoryState
    keys: Tensor
    values: Tensor
    seen: Tensor
    positions: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.to_tensors().values())

    def to_tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be saved; ``from_tensors`` is the way back."""
        z = self.memory.z
        named = {"M": self.memory.M, "z": z, "written": self.memory.written}
        named |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memory"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InfiniState:
        """The state that ``to_tensors`` gave. Raises ``ValueError`` naming what is missing or too much."""
        needed = {"M", "z", "written", "keys", "values", "seen"}
        missing, extra = needed - set(tensors), set(tensors) - needed - {"positions"}
        if missing or extra:
            raise ValueError(
                f"a state has the tensors {', '.join(sorted(needed))} and perhaps positions; missing: "
                f"{', '.join(sorted(missing)) or 'none'}, unknown: {', '.join(sorted(extra)) or 'none'}."
            )
        memory = MemoryState(tensors["M"], tensors["z"], tensors["written"])
        return cls(memory, tensors["keys"], tensors["values"], tensors["seen"], tensors.get("positions"))

    def detach(self) -> InfiniState:
        """The same values cut from the graph: for backpropagation over the last pieces only."""
        return self.from_tensors({name: tensor.detach() for name, tensor in self.to_tensors().items()})

    def clone(self) -> InfiniState:
        """A copy that shares nothing."""
        return self.from_tensors({name: tensor.clone() for name, tensor in self.to_tensors().items()})

    def to(self, device: torch.device | str) -> InfiniState:
        """The same on ``device``."""
        return self.from_tensors({name: tensor.to(device) for name, tensor in self.to_tensors().items()})

    def select_rows(self, rows: Tensor) -> InfiniState:
        """The batch rows ``rows`` [N], in that order and as often as named: for beams and samples."""
        chosen = {name: tensor.index_select(0, rows) for name, tensor in self.to_tensors().items()}
        return self.from_tensors(chosen)
