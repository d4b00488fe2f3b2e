"""A route from its start to its last question, and the lines that say what was answered.

Everything that is told at one place is planted when the trail is there; whatever is asked at one length is
asked when it arrives there, of every conversation that has come so far. Where the telling is too close to
the question for a shared way (2,048 tokens; depth 1), the conversation streams all of its own filler.

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
from dataclasses import dataclass
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
        self._left = [group for group in route.groups if self._unfinished(group)]

    def run(self) -> None:
        """Go all the way, and write what is not in the log yet."""
        trail = self._trail
        lengths = sorted({length for group in self._left for length in self._far(group)})
        arrivals = [(trail.place(length, room_for=ROOM), length) for length in lengths]
        starts = sorted({self._start(group, length) for group in self._left for length in group.lengths})
        for place, length in arrivals:
            early = [start for start in starts if start <= place - trail.tail]
            self._plants(early)
            starts = [start for start in starts if start not in early]
            self._bench.say(f"{self._route.name}: streaming to {length:,} tokens")
            self._ask_all(trail.arrive(place), length)
            # What should have been told during the last tokens before the questions is told right after.
            late = [start for start in starts if start < place]
            for start in late:
                self._plant_at(place, start)
            starts = [start for start in starts if start not in late]
        self._plants(starts)

    def _unfinished(self, group: Group) -> bool:
        return any(
            not self._log.has(**self._key(group, number, length, use))
            for number in range(group.conversations)
            for length in group.lengths
            for use in MEMORIES
        )

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

    def _far(self, group: Group) -> list[int]:
        return [length for length in group.lengths if not self._close(group, length)]

    # ---- telling

    def _plants(self, starts: list[int]) -> None:
        for start in starts:
            full = any(
                self._close(group, length)
                for group in self._left
                for length in group.lengths
                if self._start(group, length) == start
            )
            self._trail.go(start, full=self._trail.tail if full else 0)
            self._plant_at(start, start)

    def _plant_at(self, place: int, start: int) -> None:
        """Everything that belongs to ``start`` is told at ``place``, where the trail is."""
        for group in self._left:
            lengths = [length for length in group.lengths if self._start(group, length) == start]
            far = tuple(length for length in lengths if not self._close(group, length))
            if far:
                for number in range(group.conversations):
                    self._told.append(self._plant(group, number, place, far))
            for length in lengths:
                if self._close(group, length):
                    self._ask_near(group, length, place)

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

    def _ask_all(self, arrival: Arrival, length: int) -> None:
        here = [told for told in self._told if length in told.lengths]
        for told in here:
            self._trail.follow(told.planted, arrival.before)
        for told in here:
            states: dict[Memory, Conversation] = {"on": self._trail.arrived(told.planted, arrival)}
            states["off"] = arrival.off
            states["wiped"] = states["on"].copy(wiped(states["on"].cache))
            peers = [t for t in here if t.group is told.group and t.at == told.at]
            other = peers[(peers.index(told) + 1) % len(peers)]
            memories = other.planted.memories
            if other is told:
                stranger = self._stranger(told.group, arrival)
                memories = stranger.memories
            states["swapped"] = states["on"].copy(holding(states["on"].cache, memories))
            self._ask(told.group, told.number, told.script, length, arrival.place - told.at, states)

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

    def _ask_near(self, group: Group, length: int, place: int) -> None:
        """Conversations that stream all of their filler themselves, from ``place`` on."""
        trail = self._trail
        distance = max(trail.tail, length - place)
        scripts = [group.script(self._route.seed, number) for number in range(group.conversations + 1)]
        streamed = [self._streamed(trail.line.copy(), script, place, distance) for script in scripts]
        for number in range(group.conversations):
            (line, passed), (other, _) = streamed[number], streamed[number + 1]
            bare = trail.line.copy(without_memory(trail.line.cache))
            states: dict[Memory, Conversation] = {
                "on": line,
                "off": self._streamed(bare, scripts[number], place, distance)[0],
                "wiped": line.copy(wiped(line.cache)),
                "swapped": line.copy(swapped(line.cache, other.cache)),
            }
            self._ask(group, number, scripts[number], length, passed, states)

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
