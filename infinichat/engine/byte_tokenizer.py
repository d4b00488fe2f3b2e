"""A tokenizer that needs no file: one id per byte, then one id per control token.

It has the control tokens of every chat template, so tests, demos and tiny random models can use any of them.
It satisfies ``protocols.TextTokenizer``::

    ByteTokenizer().encode("é")  ->  [195, 169]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from infinichat.errors import ConfigError

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

_IDS = {token: 256 + i for i, token in enumerate(CONTROL_TOKENS)}


class ByteTokenizer:
    """Ids 0 to 255 are bytes; the rest are ``CONTROL_TOKENS`` in order."""

    vocab_size = 256 + len(CONTROL_TOKENS)

    def encode(self, text: str) -> list[int]:
        # A lone surrogate cannot come from a file or a terminal that is UTF-8, but a paste can hold one.
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise ConfigError(f"Token id {token_id} does not exist; expected 0 to {self.vocab_size - 1}.")
        return bytes([token_id]) if token_id < 256 else b""

    def control_id(self, token: str) -> int:
        if token not in _IDS:
            raise ConfigError(f"This tokenizer has no control token {token!r}; it has {', '.join(_IDS)}.")
        return _IDS[token]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(("bytes-1", *CONTROL_TOKENS)).encode()).hexdigest()
