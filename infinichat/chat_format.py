"""Messages to token ids and loss mask: the one chat template, shared by chat, training and evals.

A conversation is encoded turn by turn, because the past is in the model's state and is never fed again.
Each piece closes what the piece before it left open (the end token of an answer is sampled, not fed), so
what a piece looks like depends only on the message before it::

    send("Hi")          <|im_start|>system ... <|im_end|> <|im_start|>user Hi <|im_end|> <|im_start|>assistant
    the answer          Hello!
    send("And now?")    <|im_end|> <|im_start|>user And now? <|im_end|> <|im_start|>assistant

``encode_conversation`` is the concatenation of exactly these pieces. Text is text: a control token that a
user types is encoded letter by letter, because ``TextTokenizer.encode`` never yields control ids.
Neighbouring pieces of text in one message are joined before they are tokenized, as in a template rendered
to a string.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from infinichat.chat_templates import TEMPLATES, Part, Parts, Template
from infinichat.errors import ConfigError
from infinichat.messages import FinishReason, Role
from infinichat.protocols import TextTokenizer


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and, for each, 1 where training should predict it (answers and their end), else 0."""

    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]

    def __add__(self, other: Encoded) -> Encoded:
        return Encoded(self.ids + other.ids, self.loss_mask + other.loss_mask)


class Spoken(Protocol):
    """What the encoder looks at in a message; ``messages.Message`` and ``Utterance`` have it."""

    @property
    def role(self) -> Role: ...

    @property
    def content(self) -> str: ...

    @property
    def title(self) -> str | None: ...

    @property
    def reason(self) -> FinishReason: ...


@dataclass(frozen=True, slots=True)
class Utterance:
    """A message that is in no store: for training and evals."""

    role: Role
    content: str
    title: str | None = None
    reason: FinishReason = "complete"


@dataclass(slots=True)
class _Writer:
    """Collects parts; text is tokenized when a control token or the end comes, so neighbours are joined."""

    tokenizer: TextTokenizer
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    text: str = ""

    def add(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if isinstance(part, str):
                self.text += part
                continue
            try:
                token = self.tokenizer.control_id(part.token)
            except ConfigError:
                if not part.or_text:
                    raise
                self.text += part.token
                continue
            self.flush()
            self.ids.append(token)
            self.mask.append(0)

    def flush(self, learn: int = 0) -> None:
        if self.text:
            ids = self.tokenizer.encode(self.text)
            self.ids += ids
            self.mask += [learn] * len(ids)
            self.text = ""

    def close_answer(self, close: Parts) -> None:
        """The end token is learned, whatever the template puts after it is not."""
        at = len(self.ids)
        self.add(close)
        self.flush()
        if len(self.mask) > at:
            self.mask[at] = 1

    def done(self) -> Encoded:
        self.flush()
        return Encoded(tuple(self.ids), tuple(self.mask))


class ChatFormat:
    """One template with one tokenizer. Raises ``ConfigError`` when the tokenizer lacks a control token."""

    def __init__(self, tokenizer: TextTokenizer, template: Template) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.end_ids = self._end_ids()

    def encode_user(
        self,
        text: str,
        *,
        first: bool,
        system: str | None = None,
        after_answer: bool = False,
        after_cut_document: bool = False,
    ) -> Encoded:
        """[what closes the turn before] + [system] + the user's turn + the header of the answer.

        ``first``: nothing came before. ``system``: ``None`` is the template's default, "" is none at all; it
        counts only for the first turn. ``after_answer``: an answer (or its header) is open.
        ``after_cut_document``: a document is open because reading was stopped in it.
        """
        writer = self._begin(first, after_answer, after_cut_document)
        writer.add((*self._user_open(first, system), text))
        writer.add((*self.template.user_close, *self.template.answer_open))
        return writer.done()

    def encode_document(
        self,
        title: str | None,
        text: str,
        *,
        first: bool,
        system: str | None = None,
        after_answer: bool = False,
        after_cut_document: bool = False,
        closed: bool = True,
    ) -> Encoded:
        """A user turn that holds a document under its title and gets no answer. The arguments are
        ``encode_user``'s; ``closed=False`` leaves the turn open, as a reading that was stopped does."""
        writer = self._begin(first, after_answer, after_cut_document)
        heading = f"Document: {title}\n\n" if title else ""
        writer.add((*self._user_open(first, system), heading + text))
        if closed:
            writer.add(self.template.document_close)
        return writer.done()

    def encode_answer(self, text: str, *, closed: bool = True) -> Encoded:
        """The words of an answer, all learned. In a conversation the next turn closes it."""
        writer = _Writer(self.tokenizer)
        writer.text = text
        writer.flush(learn=1)
        if closed:
            writer.close_answer(self.template.answer_close)
        return writer.done()

    def encode_message(self, message: Spoken, *, previous: Spoken | None, system: str | None) -> Encoded:
        """What this message adds to a conversation after ``previous`` (``None``: it is the first).

        System messages add nothing and are never ``previous``: the words of a leading one are given as
        ``system`` with every message, and in the middle most templates have no place for one.
        """
        if message.role == "system":
            return Encoded((), ())
        if message.role == "assistant":
            return self.encode_answer(message.content, closed=False)
        first = previous is None
        after_answer = previous is not None and previous.role != "document"
        cut = previous is not None and previous.role == "document" and previous.reason != "complete"
        if message.role == "user":
            return self.encode_user(
                message.content, first=first, system=system, after_answer=after_answer, after_cut_document=cut
            )
        return self.encode_document(
            message.title,
            message.content,
            first=first,
            system=system,
            after_answer=after_answer,
            after_cut_document=cut,
            closed=message.reason == "complete",
        )

    def encode_conversation(self, messages: Iterable[Spoken], *, system: str | None = None) -> Encoded:
        """The pieces of ``encode_message`` one after the other, and the end of the last answer."""
        whole = _Writer(self.tokenizer)
        previous: Spoken | None = None
        for message in messages:
            if message.role == "system":
                system = message.content if previous is None else system
                continue
            piece = self.encode_message(message, previous=previous, system=system)
            whole.ids += piece.ids
            whole.mask += piece.loss_mask
            previous = message
        if previous is not None and previous.role == "assistant":
            whole.close_answer(self.template.answer_close)
        return whole.done()

    def _begin(self, first: bool, after_answer: bool, after_cut_document: bool) -> _Writer:
        writer = _Writer(self.tokenizer)
        if after_answer:
            writer.close_answer(self.template.answer_close)
        elif after_cut_document:
            writer.add(self.template.document_close)
        if first:
            writer.add(self.template.begin)
        return writer

    def _user_open(self, first: bool, system: str | None) -> Parts:
        template = self.template
        text = template.default_system if system is None else system
        if not first or not text:
            return template.user_open
        if template.system_open:
            return (*template.system_open, text, *template.system_close, *template.user_open)
        return (*template.user_open, template.fold_open + text + template.fold_close)

    def _end_ids(self) -> tuple[int, ...]:
        found = []
        for token in self.template.ends:
            try:
                found.append(self.tokenizer.control_id(token))
            except ConfigError:
                continue
        if not found:
            raise ConfigError(
                f"The tokenizer has none of the tokens that end an answer in the chat format "
                f"{self.template.name!r} ({', '.join(self.template.ends)}). "
                "Next: choose the format that the model was trained with."
            )
        return tuple(found)


def chat_format(tokenizer: TextTokenizer, name: str) -> ChatFormat:
    """The format called ``name`` for this tokenizer; raises ``ConfigError`` listing the known names."""
    if name not in TEMPLATES:
        raise ConfigError(f"There is no chat format {name!r}; expected one of {', '.join(TEMPLATES)}.")
    return ChatFormat(tokenizer, TEMPLATES[name])
