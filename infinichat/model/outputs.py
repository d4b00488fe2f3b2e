"""What a forward returns, with the names that transformers gives its own outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from infinichat.model.cache import InfiniCache


@dataclass(slots=True)
class NetworkOutput:
    """Final hidden states [B, T, C] and the state afterwards (``None``: not wanted)."""

    last_hidden_state: Tensor
    past_key_values: InfiniCache | None


@dataclass(slots=True)
class LanguageModelOutput:
    """Logits [B, T, V], the mean loss where labels were given, and the state afterwards."""

    logits: Tensor
    loss: Tensor | None
    past_key_values: InfiniCache | None
