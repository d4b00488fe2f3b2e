"""What stands between a fact and its question: held-out dialogues, books, or generated small talk.

Everything in the folder that is named is used, so it must be text that the model was not trained on.
Dialogues in files with "persona" in their name tell real facts about "me", which would contradict what is
measured; they are left out. Without a folder the text is put together from a few hundred words, which is
easier for a write gate than real text: reports say so."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from infinichat.chat_format import Utterance
from infinichat.corpus.filler import OWN_FACTS
from infinichat.corpus.vocabulary import ADJECTIVES, HOBBIES, NOUNS, choose
from infinichat.errors import UsageError
from infinichat.evals.bench import Conversation
from infinichat.evals.task import FillerKind

GENERATED = (
    "the filler is generated small talk, not real text; name a folder with --filler for figures that count"
)
PIECE_CHARS = 4000

_FRAMES = (
    "The {a} {n} stood beside the {m} for a long while.",
    "Nobody had moved the {n} since the {b} {m} was built.",
    "She walked past the {n} and thought about {h}.",
    "It rained on the {n}, and the {a} {m} was all they could see.",
    "Some people like {h} more than anything else.",
    "Between the {n} and the {m} there was a {b} {o}.",
    "He talked about {h} until the {a} {n} grew dark.",
    "There is a story about a {n}, a {m} and a {b} {o}.",
)
_SMALL_TALK = (
    "What do you think about {h}?",
    "Tell me something about a {a} {n}.",
    "I was reading about {h}.",
)


class FillerText:
    """Dialogues and books, drawn with the caller's ``random.Random``. ``notes`` are for the report."""

    def __init__(self, folder: Path | None = None) -> None:
        """Reads ``folder``; raises ``UsageError`` when it has no text."""
        self.dialogues: list[tuple[Utterance, ...]] = []
        self.books: list[tuple[str, str]] = []
        self.notes: list[str] = []
        if folder is None:
            self.notes.append(GENERATED)
            return
        for file in sorted(folder.rglob("*.jsonl")):
            if OWN_FACTS not in file.name:
                self._read_dialogues(file)
        for file in sorted([*folder.rglob("*.txt"), *folder.rglob("*.md")]):
            self.books.append((file.stem, file.read_text(encoding="utf-8", errors="replace")))
        if not self.dialogues and not self.books:
            raise UsageError(
                f"{folder} has no *.jsonl dialogues and no *.txt or *.md files. Name a folder with text."
            )

    def _read_dialogues(self, file: Path) -> None:
        for line in file.read_text(encoding="utf-8").splitlines():
            messages = json.loads(line).get("messages", []) if line.strip() else []
            told = tuple(Utterance(m["role"], m["content"]) for m in messages if m["role"] != "system")
            if told:
                self.dialogues.append(told)

    def messages(self, rng: random.Random) -> Iterator[Utterance]:
        """Dialogues without end, user and assistant in turn."""
        while True:
            if self.dialogues:
                yield from alternating(rng.choice(self.dialogues))
            elif self.books:
                yield Utterance("user", self._excerpt(rng, 900))
                yield Utterance("assistant", "I see.")
            else:
                yield Utterance("user", _sentence(rng, _SMALL_TALK))
                yield Utterance("assistant", small_talk(rng, 4))

    def pieces(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """(title, piece of text) of one book after the other from a random place on, in order."""
        while True:
            if not self.books:
                yield "Notes", " ".join(small_talk(rng, 8) for _ in range(8)) + "\n\n"
                continue
            title, text = rng.choice(self.books)
            start = rng.randrange(max(1, len(text) - PIECE_CHARS)) if len(text) > PIECE_CHARS else 0
            start = text.find("\n", start) + 1
            for at in range(start, len(text), PIECE_CHARS):
                yield title, text[at : at + PIECE_CHARS]

    def book(self, rng: random.Random) -> tuple[str, str]:
        """A whole one: (title, text)."""
        if self.books:
            return rng.choice(self.books)
        return "Notes", " ".join(small_talk(rng, 8) for _ in range(4000))

    def _excerpt(self, rng: random.Random, chars: int) -> str:
        _, text = rng.choice(self.books)
        start = rng.randrange(max(1, len(text) - chars))
        return " ".join(text[start : start + chars].split()[1:-1]) or "It was a long day."


class Stretch:
    """The ids of a filler as one conversation takes them in, as many as are asked for at a time. ``title`` is
    that of the book that is being read, None for dialogues and before the first page."""

    def __init__(self, filler: FillerText, kind: FillerKind, rng: random.Random) -> None:
        self._messages = filler.messages(rng) if kind == "dialogues" else None
        self._pieces = None if kind == "dialogues" else filler.pieces(rng)
        self._rest: list[int] = []
        self.title: str | None = None

    def take(self, conversation: Conversation, least: int) -> list[int]:
        """Ids for at least ``least`` more tokens, none for 0: whole messages, or exactly that much more of an
        open document. The caller feeds them. Overshoots by less than an exchange of messages."""
        if self._pieces is not None:
            return self._pages(conversation, least)
        ids: list[int] = []
        while len(ids) < least or (least and conversation.previous == "user"):
            assert self._messages is not None
            ids += conversation.encode(next(self._messages))
        return ids

    def _pages(self, conversation: Conversation, least: int) -> list[int]:
        assert self._pieces is not None
        ids: list[int] = []
        if least and self._rest and conversation.previous != "document":
            ids += conversation.encode(Utterance("document", "", title=self.title))
        ids += self._rest
        while len(ids) < least:
            title, piece = next(self._pieces)
            if conversation.previous == "document" and title == self.title:
                ids += conversation.raw(piece)
            else:
                self.title = title
                ids += conversation.encode(Utterance("document", piece, title=title))
        self._rest = ids[least:]
        return ids[:least]


def alternating(dialogue: tuple[Utterance, ...]) -> Iterator[Utterance]:
    """A dialogue's messages as user, assistant, user, …; one that ends with the user gets a short answer."""
    role = "user"
    for message in dialogue:
        if message.role != role:
            continue
        yield message
        role = "assistant" if role == "user" else "user"
    if role == "assistant":
        yield Utterance("assistant", "I see.")


def small_talk(rng: random.Random, sentences: int) -> str:
    """Generated sentences that tell nothing about anybody."""
    return " ".join(_sentence(rng, _FRAMES) for _ in range(sentences))


def _sentence(rng: random.Random, frames: tuple[str, ...]) -> str:
    return rng.choice(frames).format(
        a=choose(rng, ADJECTIVES, True),
        b=rng.choice(ADJECTIVES),
        n=rng.choice(NOUNS),
        m=rng.choice(NOUNS),
        o=choose(rng, NOUNS, True),
        h=rng.choice(HOBBIES),
    )
