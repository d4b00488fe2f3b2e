"""What the card measures: which things are told where on which filler, and how far from there they are asked.

A ``Route`` is one filler of one seed with everything that happens on it; it is one piece of work. A ``Group``
is a number of conversations of one kind on it. Lengths count tokens from the start of the filler to the
question; what is told at depth 0 (or at no depth) stands at the start, so there the length is the distance.
The first seed goes furthest; the others add questions to the headline distances.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infinichat.corpus.facts import FactMaker, Side
from infinichat.corpus.passkeys import OPENING
from infinichat.corpus.sentences import NOT_TOLD
from infinichat.evals import everyday, facts, needle, passkey, two_step, updates
from infinichat.evals.asking import Asked, MakeScript, Script
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.judging import admits
from infinichat.evals.telling import as_messages, distinct_facts, strangers
from infinichat.evals.trail import Trail

K = 1024
M = 1024 * K
DEPTHS = (0.0, 0.5, 1.0)
NEVER = "never told"
"""The kind of questions about things that nobody mentioned."""

MOST_ASKED = 64
"""Questions to one conversation: more of them would share its luck."""


@dataclass(frozen=True, slots=True)
class Group:
    """``conversations`` scripts by ``make``, told at the share ``depth`` of the way (``None``: at the start),
    asked at ``lengths``. ``label`` goes into the results. The first ``knocked`` questions of a conversation
    are also asked with the memory off, wiped and swapped. ``inside``: what was told is still in the window,
    which no other group allows; off is then the base model with everything in view."""

    row: str
    make: MakeScript
    conversations: int
    lengths: tuple[int, ...]
    facts: int
    depth: float | None = None
    begin: int = 0
    knocked: int = 16
    max_tokens: int = 32
    inside: bool = False
    label: dict[str, str] = field(default_factory=dict)

    def script(self, seed: int, number: int) -> Script:
        """Conversation ``number``: the same on every machine and in every run."""
        labels = "/".join(self.label.values())
        return self.make(random.Random(f"{seed}/card/{self.row}/{self.facts}/{labels}/{self.depth}/{number}"))


@dataclass(frozen=True, slots=True)
class Route:
    """A filler and its groups. ``open`` starts the trail."""

    name: str
    seed: int
    groups: tuple[Group, ...]
    open: Callable[[Bench, FillerText], Trail]

    @property
    def length(self) -> int:
        """Tokens of filler to the last question."""
        return max(max(group.lengths) for group in self.groups)


def recalling(
    rng: random.Random, *, side: Side, count: int, unknown: int = 0, own_words: float = 0.0
) -> Script:
    """``count`` facts, a share ``own_words`` of them as people put them, and questions about them; then
    ``unknown`` about what was never told."""
    maker = FactMaker(side, own_words=own_words)
    told = distinct_facts(maker, count, rng)
    messages = as_messages([maker.tell(rng, fact) for fact in told], rng)
    asked = facts.questions_about(maker, rng.sample(told, min(count, MOST_ASKED)), rng)
    asked += tuple(
        Asked(maker.ask(rng, fact).ask, admits, NOT_TOLD, NEVER)
        for fact in strangers(maker, told, unknown, rng)
    )
    return Script(messages, asked, facts=count)


def _facts(count: int, side: Side, filler: str, conversations: int, lengths: Sequence[int]) -> Group:
    unknown = 16 if (count, side, filler) == (16, "seen", "dialogues") else 0

    def make(rng: random.Random) -> Script:
        return recalling(rng, side=side, count=count, unknown=unknown)

    label = {"side": side, "filler": filler}
    return Group("facts", make, conversations, tuple(lengths), count, label=label)


def _passkey(filler: str, depth: float, conversations: int, lengths: Sequence[int]) -> Group:
    plain = filler == "repeated"
    return Group(
        "passkey",
        passkey.plain_script if plain else passkey.chat_script,
        conversations,
        tuple(lengths),
        1,
        depth=depth,
        max_tokens=8 if plain else 32,
        label={"form": "plain" if plain else "chat", "filler": filler},
    )


def dialogues(seed: int, *, first: bool) -> Route:
    """The headline: facts, corrections, things never told, between held-out dialogues."""

    def updating(rng: random.Random) -> Script:
        return updates.script(rng, side="seen", count=16)

    def combining(rng: random.Random) -> Script:
        return two_step.script(rng, side="seen", count=16)

    def everyday_ones(rng: random.Random) -> Script:
        return everyday.script(rng, side="held_out", count=16)

    def in_own_words(rng: random.Random) -> Script:
        return recalling(rng, side="seen", count=16, own_words=1.0)

    label = {"side": "seen", "filler": "dialogues"}
    near = _facts(4, "seen", "dialogues", 4, (512,))
    groups = [
        _facts(16, "seen", "dialogues", 3, (2 * K, 16 * K, 64 * K)),
        _facts(64, "seen", "dialogues", 1, (64 * K,)),
        _facts(16, "held_out", "dialogues", 3, (64 * K,)),
        Group("updates", updating, 3, (16 * K,), 16, label=label),
        Group("everyday", everyday_ones, 3, (2 * K, 16 * K, 64 * K), 16, label=label | {"side": "held_out"}),
        Group("own words", in_own_words, 3, (16 * K,), 16, label=label),
        _facts(8, "seen", "dialogues", 2, (64 * K,)),
        _facts(1, "seen", "dialogues", 4, (64 * K,)),
        Group("two-step", combining, 2, (16 * K,), 16, label=label),
        replace(near, row="in the window", inside=True),
        *(_passkey("dialogues", depth, 4, (32 * K,)) for depth in DEPTHS),
    ]
    if first:
        groups.append(_facts(256, "seen", "dialogues", 1, (64 * K,)))
    return Route(f"dialogues-{seed}", seed, tuple(groups), _opens("dialogues", seed))


def books(seed: int, *, first: bool) -> Route:
    """Facts between the pages of held-out novels; with the first seed to a million tokens, and a passkey."""
    groups = [_facts(16, "seen", "books", 3, (64 * K, 256 * K, M) if first else (64 * K,))]
    if first:
        groups.append(_passkey("books", 0.0, 10, (M,)))
    return Route(f"books-{seed}", seed, tuple(groups), _opens("books", seed))


def depths(seed: int) -> Route:
    """Passkeys and needles by depth in a held-out novel."""
    groups = [_passkey("books", depth, 10, (32 * K, 128 * K)) for depth in DEPTHS]

    def in_a_book(rng: random.Random) -> Script:
        return needle.script(rng, side="seen")

    label = {"side": "seen", "filler": "books"}
    groups += [
        Group("needle", in_a_book, 10, (32 * K,), 1, depth=depth, begin=needle.BEGINNING, label=label)
        for depth in DEPTHS
    ]
    return Route(f"depths-{seed}", seed, tuple(groups), _opens("books", seed))


def repeated(seed: int) -> Route:
    """The paper's passkey, word for word, in the paper's filler."""
    groups = tuple(_passkey("repeated", depth, 10, (4 * K, 32 * K, 128 * K)) for depth in DEPTHS)
    return Route(
        f"repeated-{seed}",
        seed,
        groups,
        lambda bench, _: Trail(bench, passkey.RepeatedLines(), opening=OPENING),
    )


def all_routes(seeds: Sequence[int]) -> list[Route]:
    """Every route of the card. The first has the longest way."""
    first, *others = seeds
    return [
        books(first, first=True),
        dialogues(first, first=True),
        *(dialogues(seed, first=False) for seed in others),
        depths(first),
        *(books(seed, first=False) for seed in others),
        repeated(first),
    ]


def _opens(kind: Any, seed: int) -> Callable[[Bench, FillerText], Trail]:
    def opened(bench: Bench, filler: FillerText) -> Trail:
        return Trail(bench, Stretch(filler, kind, random.Random(f"{seed}/card/{kind}")))

    return opened
