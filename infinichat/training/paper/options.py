"""What can be chosen about the comparison, and what of it decides what a model becomes.

The defaults take one core about 45 minutes for all six models; the command's help has those of the paper.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from infinichat.errors import UsageError
from infinichat.training.lm_model import Learning
from infinichat.training.lm_run import RunOptions
from infinichat.training.paper.variants import KINDS, Kind, Sizes
from infinichat.training.texts import Texts


@dataclass(frozen=True, slots=True)
class Tuning:
    """Fine-tuning on rows of ``least`` to ``tokens`` tokens, and the ``lengths`` (tokens) that are asked,
    ``samples`` keys at each depth."""

    steps: int = 150
    rows: int = 8
    least: int = 128
    tokens: int = 512
    rate: float = 1e-3
    lengths: tuple[int, ...] = (1024, 2048, 8192, 32768)
    samples: int = 4

    def deciding(self) -> dict[str, Any]:
        """What decides what a model becomes."""
        names = ("steps", "rows", "least", "tokens", "rate")
        return {f"passkey_{name}": getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class PaperOptions:
    """``run`` is for training: its steps, seed, schedule and folder, of which every model has a part.
    ``rows`` blocks of ``block`` tokens a step in each process; ``books`` whole held-out books are measured,
    and while training ``check_rows`` blocks of them."""

    texts: Texts
    run: RunOptions
    kinds: tuple[Kind, ...] = KINDS
    sizes: Sizes = field(default_factory=Sizes)
    learning: Learning = field(default_factory=lambda: Learning(rate=5e-3, gate_rate=0.02, decay=0.1))
    tuning: Tuning = field(default_factory=Tuning)
    tokenizer: str | None = None
    vocabulary: int = 2048
    block: int = 1024
    rows: int = 2
    books: int = 2
    check_rows: int = 16

    def deciding(self) -> dict[str, Any]:
        """What decides what a model becomes, beside what ``RunOptions`` has of it; as JSON has it."""
        names = ("vocabulary", "block", "rows", "check_rows", "tokenizer")
        own = {name: getattr(self, name) for name in names} | {"text": self.texts.train.name}
        values: dict[str, Any] = json.loads(json.dumps(own | asdict(self.sizes) | asdict(self.learning)))
        return values

    def check(self) -> None:
        """Raises ``UsageError`` for numbers that cannot go together."""
        segment, full, block = self.sizes.segment, self.sizes.full, self.block
        for name, length in (("--segment_length", segment), ("--full_length", full)):
            if block % length:
                raise UsageError(
                    f"--block_size {block} is no whole number of {name} {length}. Choose a multiple of it."
                )
        if full % segment:
            raise UsageError(f"--full_length {full} is no whole number of --segment_length {segment}.")
        if self.tuning.least > self.tuning.tokens:
            raise UsageError(
                f"--passkey_min_tokens {self.tuning.least} is more than --passkey_tokens "
                f"{self.tuning.tokens}. Lower it."
            )
