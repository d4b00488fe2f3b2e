"""``passkey``: a random five-digit key at a depth, as in the paper, and told in a chat.

    plain    the paper's words and its repeated filler, no chat; the model completes "The pass key is"
    chat     the same sentence sent as a message between held-out dialogues or books, asked for in a message

Repeated filler alone proves little, which is why both are measured. Depth d puts the key at the share d of
what lies beyond the window, so that it is never in the window when it is asked for. No key is one that
``train passkey`` may have shown the model.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from infinichat.chat_format import Utterance
from infinichat.corpus.passkeys import OPENING, QUESTION, REPEATED, SENTENCE, draw_key
from infinichat.evals.asking import Asked, Plan, Script, plan, play
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.filler import FillerText
from infinichat.evals.judging import completes, says
from infinichat.evals.task import Options, Report, Tally


class RepeatedLines:
    title: str | None = None
    """The paper's filler, as raw text."""

    def take(self, conversation: Conversation, least: int) -> list[int]:
        """Whole repetitions, at least ``least`` tokens."""
        line = conversation.raw(REPEATED)
        return line * (-(-least // len(line))) if least > 0 else []


def plain_script(rng: random.Random) -> Script:
    """The key in raw text."""
    value = draw_key(rng)
    asked = Asked(QUESTION, completes(value), value)
    return Script((), (asked,), facts=1, inside=" " + SENTENCE.format(key=value))


def chat_script(rng: random.Random) -> Script:
    """The key in a message."""
    value = draw_key(rng)
    told = (
        Utterance("user", SENTENCE.format(key=value)),
        Utterance("assistant", "Okay, I will remember that."),
    )
    return Script(told, (Asked("What is the pass key?", says(value), value),), facts=1)


def plans(bench: Bench, options: Options, filler: FillerText) -> list[Plan]:
    """Every depth, plain and with every kind of filler."""
    found = []
    for depth in options.depths:
        for kind in options.kinds:
            chat = plan(
                bench,
                options,
                filler,
                chat_script,
                kind=kind,
                conversations=options.samples,
                seed=f"{options.seed}/passkey/chat/{kind}/{depth}",
                label={"form": "chat", "filler": kind},
                depth=depth,
            )
            found.append(chat)
        found.append(
            replace(
                found[-1],
                make=plain_script,
                stretch=lambda rng: RepeatedLines(),
                seed=f"{options.seed}/passkey/plain/{depth}",
                opening=OPENING,
                label={"form": "plain", "filler": "repeated"},
                max_tokens=8,
            )
        )
    return found


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by length, depth, memory, form and filler; one key for each conversation."""
    filler, tally = FillerText(options.filler), Tally()
    for wanted in plans(bench, options, filler):
        play(bench, wanted, tally, transcript)
    return Report("passkey", bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
