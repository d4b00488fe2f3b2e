"""Whether an answer is right: the whole value, nothing but the value, at its place in a sentence.

Both sides are compared without regard to case and to kinds of quotes and blanks. An answer is right when it
says the value as whole words and the value is all that it says there: the words around it, up to the next
punctuation, must be words that only hold a sentence together ("is", "in", "now", an article, …).

    told Tomas            "His name is Tomaso."         wrong: another word
    told Clara            "It is Clara Quilbel."        wrong: a longer name
    told Lantern          "It is The Silver Lantern."   wrong: another title
    told 28 March         "It is 28 March 1960."        wrong: another date
    told 417              "It's 417 now, I think."      right

An answer that offers the value beside another one ("417 or 312", "417, 312") is wrong as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from infinichat.corpus.sentences import Fact, answer_start, asks_for, echo_of

Judge = Callable[[str], bool]

BEFORE = frozenset(
    [
        "is",
        "was",
        "are",
        "were",
        "be",
        "been",
        "it's",
        "its",
        "that's",
        "he's",
        "she's",
        "they're",
        "called",
        "named",
        "as",
        "a",
        "an",
        "the",
        "in",
        "at",
        "on",
        "to",
        "from",
        "of",
        "by",
        "for",
        "with",
        "about",
        "say",
        "says",
        "said",
        "told",
        "remember",
        "answer",
        "be",
        "now",
        "still",
        "like",
        "likes",
        "love",
        "loves",
        "enjoy",
        "enjoys",
        "play",
        "plays",
        "drive",
        "drives",
        "speaking",
        "speak",
        "speaks",
        "study",
        "studies",
        "learning",
        "room",
        "live",
        "lives",
        "near",
        "me",
        "you",
        "that",
        "use",
        "uses",
        "have",
        "has",
        "picked",
        "up",
        "gave",
        "received",
    ]
)
"""Words that may stand right before a value."""

AFTER = frozenset(
    [
        "and",
        "now",
        "as",
        "is",
        "was",
        "are",
        "if",
        "but",
        "years",
        "year",
        "old",
        "in",
        "at",
        "on",
        "for",
        "by",
        "from",
        "which",
        "that",
        "this",
        "today",
        "since",
        "because",
        "to",
        "so",
        "again",
        "with",
        "right",
        "correct",
        "you",
        "i",
        "he",
        "she",
        "it",
        "they",
        "when",
        "these",
        "then",
        "too",
        "also",
    ]
)
"""Words that may stand right after a value."""

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " "})


def normalised(text: str) -> str:
    """Lower case, plain quotes, single blanks, no Markdown emphasis."""
    return " ".join(text.translate(_QUOTES).replace("*", "").split()).casefold()


def says(value: str, *, never: Sequence[str] = (), behind: Sequence[str] = ()) -> Judge:
    """Right is an answer that gives ``value`` and none of ``never``, by the module's rule; words of
    ``behind`` may stand right before the value, too."""
    wanted, allowed = _whole(normalised(value)), BEFORE | {normalised(word) for word in behind}
    others = [_whole(normalised(other)) for other in never]

    def judge(answer: str) -> bool:
        text = normalised(answer)
        if any(other.search(text) for other in others):
            return False
        return any(_alone(text, found, allowed) for found in wanted.finditer(text))

    return judge


def names(value: str) -> Judge:
    """Right is an answer in which ``value`` stands as whole words, whatever is beside it: for sentences
    that were not generated, where a right answer may be "a plumber in Leeds"."""
    wanted = _whole(normalised(value))
    return lambda answer: wanted.search(normalised(answer)) is not None


def completes(value: str) -> Judge:
    """Right is a continuation that begins with ``value``: for text that is completed, not answered."""
    wanted = _whole(normalised(value))
    return lambda answer: wanted.match(normalised(answer)) is not None


def _whole(value: str) -> re.Pattern[str]:
    """``value`` where no word, number, address or name goes on at either end."""
    return re.compile(rf"(?<![\w-])(?<!\w[.,:'/@]){re.escape(value)}(?![\w-]|[.,:'/@]\w)")


def says_fact(fact: Fact, *, never: Sequence[str] = ()) -> Judge:
    """``says`` its value, behind the last word of any of the ways in which such a fact is answered, too: "You
    named your dog Rufus." """
    forms = (None, echo_of(fact), *(ask.answer for ask in asks_for(fact)))
    starts = [answer_start(fact, form) for form in forms]
    return says(fact.value, never=never, behind=[start.split()[-1] for start in starts if start])


def _alone(text: str, found: re.Match[str], allowed: frozenset[str]) -> bool:
    before, after = text[: found.start()], text[found.end() :]
    # "red, blue" and "red or blue" offer two values; which one is meant is not for a judge to say.
    if re.search(r"(\bor|,)\s*$", before) and re.search(r"\b(is|was|are)\s+(?!,)[^,.;]+(,|\bor)\s*$", before):
        return False
    if re.match(r"\s*(,\s*)?or\b|\s*,\s*\d", after):
        return False
    last = re.search(r"([\w'-]+)\s*$", before.rstrip('"( '))
    ended = re.search(r"[.:;!?,]\s*[\"(]?\s*$", before)
    if last and not ended and last[1] not in allowed:
        return False
    following = re.match(r"[\")]*\s*([\w'-]+)", after)
    return following is None or following[1] in AFTER


_ADMITS = re.compile(
    r"(have not|haven't|never|not) (yet )?(told|mentioned|said|shared)|"
    r"(did not|didn't) (tell|mention|say|share)|"
    r"(do not|don't) (know|have (that|any|this) information|recall|remember)|not sure|no information",
    re.IGNORECASE,
)


def admits(answer: str) -> bool:
    """Whether an answer says that this was never told (in any of the usual ways)."""
    return _ADMITS.search(answer.translate(_QUOTES)) is not None
