"""One answer while it comes: which id is next, which text is whole, and whether that was the end.

Alone (``generate``) and among others (``batch``) an answer is the same object, so it ends alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from infinichat.engine.detokenize import StreamDecoder
from infinichat.engine.sampling import Sampler
from infinichat.messages import SamplingOptions
from infinichat.protocols import GeneratedToken, TextTokenizer


class Answer:
    """Ids are chosen one by one; each is fed by the caller, and then ``said``. ``end_ids`` end the answer
    and are not fed."""

    def __init__(self, options: SamplingOptions, end_ids: Sequence[int], tokenizer: TextTokenizer) -> None:
        self._left = options.max_tokens
        self._ends = frozenset(end_ids)
        self._sampler = Sampler(options)
        self._decoder = StreamDecoder(tokenizer, options.stop)

    @property
    def full(self) -> bool:
        """Whether all ids that were allowed have been said."""
        return self._left <= 0

    def choose(self, logits: Tensor) -> int | GeneratedToken:
        """The next id for logits [V], to be fed; or the answer's last item when that ends it. Raises
        ``ModelError`` when the best logit is not a finite number."""
        token_id = self._sampler.next_id(logits)
        if token_id in self._ends:
            return GeneratedToken(token_id, self._decoder.rest(), False, "stop")
        return token_id

    def said(self, token_id: int) -> GeneratedToken:
        """The item of an id that was fed."""
        self._left -= 1
        text, stopped = self._decoder.add(token_id)
        if stopped:
            return GeneratedToken(token_id, text, True, "stop")
        if self.full:
            return GeneratedToken(token_id, text + self._decoder.rest(), True, "length")
        return GeneratedToken(token_id, text, True)

    def stopped(self) -> GeneratedToken:
        """The last item of an answer that is to go no further."""
        return GeneratedToken(None, self._decoder.rest(), False, "stopped")
