"""A loaded model with its chat format, and one conversation with it: fed as the product feeds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infinichat.chat_format import ChatFormat, Utterance, chat_format
from infinichat.engine.generate import InfiniEngine
from infinichat.evals.streaming import stream, stream_below
from infinichat.messages import Role, SamplingOptions
from infinichat.model.cache import InfiniCache

Say = Callable[[str], None]
"""Takes a sentence about how far a measurement is."""


def silent(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures run on. ``say`` gets progress."""

    engine: InfiniEngine
    format: ChatFormat
    say: Say = silent

    @classmethod
    def of(cls, engine: InfiniEngine, say: Say = silent) -> Bench:
        """A bench over an engine, in the engine's own chat format."""
        return cls(engine, chat_format(engine.tokenizer, engine.info.chat_format), say)

    def new_conversation(self) -> Conversation:
        """An empty one."""
        return Conversation(self, self.engine.new_state())


class Conversation:
    """Messages fed turn by turn, each closed by the next as in a session. ``previous`` is the role of the
    last message, "document" while a document is open, "raw" after text outside of any chat format."""

    def __init__(self, bench: Bench, cache: InfiniCache, previous: Role | str | None = None) -> None:
        self.bench = bench
        self.cache = cache
        self.previous = previous

    def copy(self, cache: InfiniCache | None = None) -> Conversation:
        """The same conversation, or the same on another state; neither disturbs the other."""
        return Conversation(self.bench, cache or self.cache.clone(), self.previous)

    @property
    def tokens(self) -> int:
        """Tokens fed so far."""
        return self.cache.tokens_seen

    def encode(self, message: Utterance) -> tuple[int, ...]:
        """The ids that ``message`` adds, and from now on it is the last message."""
        first = self.previous is None
        answer, cut = self.previous in ("user", "assistant"), self.previous == "document"
        form, text = self.bench.format, message.content
        if message.role == "assistant":
            ids = form.encode_answer(text, closed=False).ids
        elif message.role == "document":
            # Open until the next message closes it, as one whose reading goes on.
            ids = form.encode_document(
                message.title, text, first=first, after_answer=answer, after_cut_document=cut, closed=False
            ).ids
        else:
            ids = form.encode_user(text, first=first, after_answer=answer, after_cut_document=cut).ids
        self.previous = message.role
        return ids

    def tell(self, message: Utterance) -> None:
        """Feed one message."""
        self.feed(self.encode(message))

    def feed(self, ids: Sequence[int]) -> None:
        """Feed ids through all layers."""
        stream(self.bench.engine, self.cache, ids)

    def feed_below(self, ids: Sequence[int]) -> None:
        """Feed ids that only have to reach the memory (``streaming.stream_below``)."""
        stream_below(self.bench.engine, self.cache, ids)

    def raw(self, text: str) -> list[int]:
        """The ids of text as it is: more of an open document, or no chat at all."""
        if self.previous is None:
            self.previous = "raw"
        return self.bench.engine.tokenizer.encode(text)

    def encode_question(self, text: str) -> Sequence[int]:
        """The ids that a question adds: a message, or more text where there is no chat."""
        return self.raw(text) if self.previous == "raw" else self.encode(Utterance("user", text))

    def ask(self, text: str, *, max_tokens: int) -> str:
        """The greedy answer to a question; this conversation is as before."""
        return self.copy().say(text, max_tokens=max_tokens)

    def say(self, text: str, *, max_tokens: int) -> str:
        """The greedy answer to a message; both belong to this conversation from then on."""
        self.feed(self.encode_question(text))
        options = SamplingOptions(temperature=0, repetition_penalty=1.0, max_tokens=max_tokens)
        ends = self.bench.format.end_ids
        tokens = self.bench.engine.generate(self.cache, options, end_ids=ends)
        answer = "".join(token.text for token in tokens)
        if self.previous != "raw":
            self.previous = "assistant"
        return answer
