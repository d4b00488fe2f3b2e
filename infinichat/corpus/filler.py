"""Real text to put between a fact and its question: dialogues from JSONL files, prose from text files.

Any folder works: every ``*.jsonl`` line with ``{"messages": [{"role", "content"}, ...]}`` is a dialogue,
every
``*.txt`` or ``*.md`` file is prose. One dialogue and one book in ten belong to the validation side, chosen
by a
hash of their name and place, so that no text is on both sides.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from infinichat.corpus.vocabulary import is_held_out
from infinichat.errors import UsageError

VALIDATION_SHARE = 10
OWN_FACTS = (
    "persona"  # dialogues in files with this in the name tell real facts; a write gate must not unlearn them
)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Alternating messages, user first. ``tells``: people tell facts about themselves in it."""

    messages: tuple[tuple[str, str], ...]
    tells: bool


class Filler:
    """Dialogues and prose of one side, drawn with the caller's ``random.Random``."""

    def __init__(self, folder: Path, *, validation: bool = False, limit_chars: int = 40_000_000) -> None:
        """Reads ``folder``; raises ``UsageError`` when it has neither dialogues nor prose."""
        self.dialogues: list[Dialogue] = []
        self.books: list[str] = []
        for file in sorted(folder.rglob("*.jsonl")):
            self._read_dialogues(file, validation)
        left = limit_chars
        for file in sorted([*folder.rglob("*.txt"), *folder.rglob("*.md")]):
            if left > 0 and is_held_out(file.name, share=VALIDATION_SHARE) == validation:
                self.books.append(file.read_text(encoding="utf-8", errors="replace")[:left])
                left -= len(self.books[-1])
        if not self.dialogues and not self.books:
            raise UsageError(
                f"{folder} has no *.jsonl dialogues and no *.txt or *.md files; name a folder with text."
            )

    def _read_dialogues(self, file: Path, validation: bool) -> None:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")):
            if is_held_out(f"{file.name}:{number}", share=VALIDATION_SHARE) != validation or not line.strip():
                continue
            messages = tuple((m["role"], m["content"]) for m in json.loads(line)["messages"])
            self.dialogues.append(Dialogue(messages, OWN_FACTS in file.name))

    def turns(self, rng: random.Random, count: int) -> Dialogue:
        """``count`` consecutive turns (user and assistant) from a random place of a random dialogue."""
        if not self.dialogues:
            text = self.prose(rng, 600)
            return Dialogue((("user", text), ("assistant", "I see.")), False)
        dialogue = rng.choice(self.dialogues)
        pairs = len(dialogue.messages) // 2
        first = rng.randrange(max(1, pairs - count + 1))
        return Dialogue(dialogue.messages[2 * first : 2 * (first + count)], dialogue.tells)

    def sentence(self, rng: random.Random) -> str:
        """A short line somebody said in a dialogue."""
        for _ in range(20):
            dialogue = self.turns(rng, 1)
            text = dialogue.messages[0][1] if dialogue.messages else ""
            if 10 < len(text) < 120 and not dialogue.tells:
                return text if text[-1] in ".!?" else text + "."
        return "It was a long day."

    def prose(self, rng: random.Random, chars: int) -> str:
        """About ``chars`` characters of one book, cut at blanks."""
        if not self.books:
            return " ".join(self.sentence(rng) for _ in range(max(1, chars // 60)))
        book = rng.choice(self.books)
        start = rng.randrange(max(1, len(book) - chars))
        return " ".join(book[start : start + chars].split(" ")[1:-1]) or "It was a long day."
