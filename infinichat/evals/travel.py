"""A route from its start to its last question, and the lines that say what was answered.

Everything that is told at one place is planted when the trail is there; whatever is asked at one length is
asked when it arrives there. A length has a few such places, each for every fourth conversation, because what
was said last has a say in the answer: not all should be asked after the same words. Where the telling is too
close to the question for a shared way (2,048 tokens; depth 1), the conversation streams all of its filler.

Each conversation's answers at one length under one condition are one line of a ``Log``, written at once: a
run that was stopped goes on with what has no line yet. The filler has to be streamed again up to there.

    on        the conversation as it is
    off       the same filler, no memory in the model: a sliding window
    wiped     the same window, the memory empty when the question comes
    swapped   the same window, the memory of the next conversation of the group: another user's
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.conditions import swapped, wiped, without_memory
from infinichat.evals.filler import FillerText
from infinichat.evals.judging import admits
from infinichat.evals.routes import NEVER, Group, Route
from infinichat.evals.task import MEMORIES, Memory
from infinichat.evals.together import Asker
from infinichat.evals.trail import ROOM, Arrival, Planted, holding

Line = dict[str, Any]

VARIANTS = 4
"""Places at which a length is asked, each a window and more further on than the one before."""


class Log:
    """Lines in a file, each written and flushed at once."""

    def __init__(self, file: Path) -> None:
        """Reads what is there; a last line that was cut off is dropped."""
        self.lines: list[Line] = []
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole, encoding="utf-8")
        self.lines = [json.loads(line) for line in whole.splitlines()]
        self._file = file

    def write(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def has(self, **keys: Any) -> bool:
        """Whether a line has all of ``keys``."""
        return any(all(line.get(name) == value for name, value in keys.items()) for line in self.lines)


@dataclass(frozen=True, slots=True)
class _Telling:
    """Which conversations of a group are told something at ``start``, to be asked at ``lengths``; with a
    ``distance`` they are asked that far from there, on filler of their own."""

    start: int
    group: Group
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    distance: int | None = None


@dataclass(slots=True)
class _Told:
    """A conversation on its way, told at place ``at`` and asked at ``lengths``."""

    group: Group
    number: int
    script: Script
    planted: Planted
    at: int
    lengths: tuple[int, ...]


class Journey:
    """One route with one model."""

    def __init__(self, bench: Bench, route: Route, filler: FillerText, log: Log) -> None:
        self._bench = bench
        self._route = route
        self._log = log
        self._trail = route.open(bench, filler)
        self._asker = Asker(bench)
        self._told: list[_Told] = []
        trail = self._trail
        self._near = trail.join + trail.tail + trail.segment
        self._step = trail.tail + trail.window
        self._left = [
            group
            for group in route.groups
            if any(
                self._unfinished(group, number, length)
                for number in range(group.conversations)
                for length in group.lengths
            )
        ]

    def run(self) -> None:
        """Go all the way, and write what is not in the log yet."""
        trail = self._trail
        tellings = sorted(self._tellings(), key=lambda telling: telling.start)
        for place, length, variant in self._arrivals():
            while tellings and tellings[0].start <= place - trail.tail:
                self._tell(tellings.pop(0))
            self._bench.say(f"{self._route.name}: streaming to {place:,} tokens")
            self._ask_all(trail.arrive(place), length, variant)
            # What should have been told during the last tokens before the questions is told right after.
            while tellings and tellings[0].start < place:
                self._tell(replace(tellings.pop(0), start=place))
        while tellings:
            self._tell(tellings.pop(0))

    def _unfinished(self, group: Group, number: int, length: int) -> bool:
        return any(not self._log.has(**self._key(group, number, length, use)) for use in MEMORIES)

    def _key(self, group: Group, number: int, length: int, use: Memory) -> Line:
        return {
            "row": group.row,
            "facts": group.facts,
            "depth": group.depth,
            **group.label,
            "seed": self._route.seed,
            "number": number,
            "length": length,
            "memory": use,
        }

    # ---- where

    def _start(self, group: Group, length: int) -> int:
        """Where this group tells what it asks at ``length``: depth 1 is the last place beyond any window."""
        wanted = round((group.depth or 0) * (length - self._trail.tail - ROOM))
        return self._trail.place(max(group.begin, wanted))

    def _close(self, group: Group, length: int) -> bool:
        return length - self._start(group, length) < self._near

    def _tellings(self) -> list[_Telling]:
        """Everything that is told on this route. Where the way is short each conversation begins at a place
        of its own, so that the words before its question are its own as well."""
        found: list[_Telling] = []
        for group in self._left:
            shared: dict[int, list[int]] = {}
            for length in group.lengths:
                start = self._start(group, length)
                if not self._close(group, length):
                    shared.setdefault(start, []).append(length)
                    continue
                for variant in range(min(VARIANTS, group.conversations)):
                    numbers = tuple(range(variant, group.conversations, VARIANTS))
                    place = self._trail.place(start + variant * self._step)
                    distance = length if group.inside else max(self._trail.tail, length - start)
                    found.append(_Telling(place, group, numbers, (length,), distance))
            everyone = tuple(range(group.conversations))
            found += [_Telling(start, group, everyone, tuple(far)) for start, far in shared.items()]
        return found

    def _arrivals(self) -> list[tuple[int, int, int]]:
        """(place, length, variant): for each length a few places a window apart, each for some of the
        conversations, so that not all of them are asked after the same words."""
        found = []
        for length in sorted({length for group in self._left for length in group.lengths}):
            place = self._trail.place(length, room_for=ROOM)
            for variant in range(VARIANTS):
                if any(
                    self._unfinished(group, number, length)
                    for group in self._left
                    if length in group.lengths and not self._close(group, length)
                    for number in range(variant, group.conversations, VARIANTS)
                ):
                    found.append((place, length, variant))
                place = self._trail.place(place + self._step, room_for=ROOM)
        return sorted(found)

    # ---- telling

    def _tell(self, telling: _Telling) -> None:
        near = telling.distance is not None
        self._trail.go(telling.start, full=self._trail.tail if near else 0)
        if near:
            self._ask_near(telling)
            return
        for number in telling.numbers:
            self._told.append(self._plant(telling.group, number, telling.start, telling.lengths))

    def _plant(self, group: Group, number: int, place: int, lengths: tuple[int, ...]) -> _Told:
        script = group.script(self._route.seed, number)
        line = self._trail.line.copy()
        for message in script.told:
            line.feed_below(line.encode(message))
        if script.inside:
            line.feed_below(line.raw(script.inside))
        planted = self._trail.plant(line, place)
        return _Told(group, number, script, planted, place, lengths)

    # ---- asking

    def _ask_all(self, arrival: Arrival, length: int, variant: int) -> None:
        for told in self._told:
            if (
                length not in told.lengths
                or told.number % VARIANTS != variant
                or not self._unfinished(told.group, told.number, length)
            ):
                continue
            self._trail.follow(told.planted, arrival.before)
            states: dict[Memory, Conversation] = {"on": self._trail.arrived(told.planted, arrival)}
            states["off"] = arrival.off
            states["wiped"] = states["on"].copy(wiped(states["on"].cache))
            memories = self._others(told, arrival).memories
            states["swapped"] = states["on"].copy(holding(states["on"].cache, memories))
            self._ask(told.group, told.number, told.script, length, arrival.place - told.at, states)

    def _others(self, told: _Told, arrival: Arrival) -> Planted:
        """The memory of the next conversation of the group at this place, or of a stranger."""
        peers = [other for other in self._told if other.group is told.group and other.at == told.at]
        if len(peers) == 1:
            return self._stranger(told.group, arrival)
        other = peers[(peers.index(told) + 1) % len(peers)].planted
        self._trail.follow(other, arrival.before)
        return other

    def _stranger(self, group: Group, arrival: Arrival) -> Planted:
        """The memory of a user who is not asked, for a group of one."""
        script = group.script(self._route.seed, group.conversations)
        line = self._bench.new_conversation()
        for message in script.told:
            line.tell(message)
        line.feed(self._trail.ids[: self._trail.join])
        states = line.cache.states
        memories = {index: (memory, states[index].bank) for index, memory in line.cache.memories.items()}
        return Planted(memories, arrival.place)

    def _ask_near(self, telling: _Telling) -> None:
        """Conversations that stream all of their filler themselves."""
        trail, group, place = self._trail, telling.group, telling.start
        [length] = telling.lengths
        assert telling.distance is not None
        left = [number for number in telling.numbers if self._unfinished(group, number, length)]
        if not left:
            return
        numbers = [*left, group.conversations] if len(left) == 1 else left
        scripts = [group.script(self._route.seed, number) for number in numbers]
        streamed = [self._streamed(trail.line.copy(), script, place, telling.distance) for script in scripts]
        for index, number in enumerate(left):
            (line, passed), (other, _) = streamed[index], streamed[(index + 1) % len(streamed)]
            bare = trail.line.copy(without_memory(trail.line.cache))
            states: dict[Memory, Conversation] = {
                "on": line,
                "off": self._streamed(bare, scripts[index], place, telling.distance)[0],
                "wiped": line.copy(wiped(line.cache)),
                "swapped": line.copy(swapped(line.cache, other.cache)),
            }
            self._ask(group, number, scripts[index], length, passed, states)

    def _streamed(
        self, line: Conversation, script: Script, place: int, distance: int
    ) -> tuple[Conversation, int]:
        """``line`` after the telling and filler, and how much filler that was."""
        for message in script.told:
            line.tell(message)
        if script.inside:
            line.feed(line.raw(script.inside))
        line.feed(self._trail.rejoin(line, place))
        ahead = line.tokens - self._trail.start - place
        end = self._trail.place(place + distance, ahead=ahead, room_for=ROOM)
        line.feed(self._trail.ids[place:end])
        return line, end - place

    def _ask(
        self,
        group: Group,
        number: int,
        script: Script,
        length: int,
        distance: int,
        states: dict[Memory, Conversation],
    ) -> None:
        for use, conversation in states.items():
            key = self._key(group, number, length, use)
            if self._log.has(**key):
                continue
            begun = time.perf_counter()
            asked = list(questions(group, script, use))
            texts = [question.text for question in asked]
            answers = self._asker.ask(conversation, texts, max_tokens=group.max_tokens)
            results = [_result(question, got) for question, got in zip(asked, answers, strict=True)]
            seconds = round(time.perf_counter() - begun, 2)
            self._log.write({**key, "distance": distance, "asked": results, "seconds": seconds})
            right = sum(result["right"] for result in results)
            said = " ".join(group.label.values())
            where = "" if group.depth is None else f", depth {group.depth:g}"
            self._bench.say(
                f"{self._route.name}: {group.row} {group.facts} {said}{where}, {length:,} tokens, "
                f"memory {use}: {right} of {len(results)}"
            )


def questions(group: Group, script: Script, use: Memory) -> Iterator[Asked]:
    """Which of a script's questions are asked under a condition: all with the memory on, the first
    ``knocked`` about things told without it."""
    told = [asked for asked in script.asked if asked.kind != NEVER]
    yield from told if use == "on" else told[: group.knocked]
    if use == "on":
        yield from (asked for asked in script.asked if asked.kind == NEVER)


def _result(asked: Asked, got: str) -> Line:
    return {
        "asked": asked.text,
        "expected": asked.expected,
        "got": got,
        "right": asked.right(got),
        "refused": admits(got),
        "kind": asked.kind,
    }
