"""Which engines take part in a measurement, started and measured in turn.

All of them get the same ids, the same number of threads and, but for the number format, the same weights.
Rounds are interleaved: every engine does its share before any does the next one, so that whatever else the
machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infinichat.bench.llamacpp import llamacpp_peer
from infinichat.bench.wire import Child, PeerError, python_peer
from infinichat.errors import UsageError
from infinichat.paths import default_paths

AGAINST = ("transformers", "transformers-float32", "transformers-generate", "llamacpp")
"""What ``--against`` takes; "transformers" is bfloat16, in a loop and through ``generate``."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. ``weights`` are our formats to measure; ``context`` the longest history and what is
    generated on top of it, in tokens."""

    model: str | None
    against: tuple[str, ...]
    weights: tuple[str, ...]
    threads: int | None
    window: int | None
    context: int


@dataclass(frozen=True, slots=True)
class Running:
    """An engine that is ready. ``about`` is its own description."""

    child: Child
    about: dict[str, Any]

    @property
    def engine(self) -> str:
        return str(self.about["engine"])

    @property
    def weights(self) -> str:
        return str(self.about["weights"])


def prompt_ids(count: int, *, seed: int = 0) -> list[int]:
    """``count`` ids that every vocabulary of some size has; the same for all engines. Speed does not depend
    on what is said."""
    return [500 + (7919 * (i + 1) + 104_729 * seed + i * i) % 20_000 for i in range(count)]


@contextlib.contextmanager
def started(options: Options, *, say: Say) -> Iterator[tuple[list[Running], list[str]]]:
    """The engines, ours first, and sentences about those that could not be started."""
    unknown = [name for name in options.against if name not in AGAINST]
    if unknown:
        raise UsageError(f"--against has {unknown[0]!r}; expected some of {', '.join(AGAINST)}.")
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        running: list[Running] = []
        threads = options.threads
        for weights in options.weights:
            arguments = _arguments(options, threads, weights)
            if options.window is not None:
                arguments += ["--window", str(options.window)]
            child = stack.enter_context(python_peer("infinichat", arguments))
            running.append(_described(child, say))
            threads = int(running[0].about["threads"])
        assert threads is not None
        for name in _expanded(options.against):
            try:
                child = stack.enter_context(_peer(name, options, threads, say))
                running.append(_described(child, say))
            except PeerError as error:
                notes.append(str(error))
                say(f"without {name}: {error}")
        yield running, notes


def _described(child: Child, say: Say) -> Running:
    running = Running(child, child.ask("describe"))
    say(f"{running.engine} ({running.weights}) loaded in {running.about['load_s']:.1f} s")
    return running


def _arguments(options: Options, threads: int | None, weights: str) -> list[str]:
    arguments = ["--weights", weights]
    arguments += [] if options.model is None else ["--model", options.model]
    return arguments + ([] if threads is None else ["--threads", str(threads)])


def _expanded(against: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in against:
        names += ["transformers", "transformers-generate"] if name == "transformers" else [name]
    return list(dict.fromkeys(names))


def _peer(name: str, options: Options, threads: int, say: Say) -> Child:
    if name == "llamacpp":
        from infinichat.model.registry import Registry

        say("llama.cpp: looking for node-llama-cpp (fetched once into the cache folder)")
        weights = Registry().base_weights(options.model)
        return llamacpp_peer(weights, threads=threads, context=options.context, cache=default_paths().cache)
    if name == "transformers-float32":
        return python_peer("transformers", _arguments(options, threads, "float32"))
    return python_peer(name, _arguments(options, threads, "bfloat16"))
