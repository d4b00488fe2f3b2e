"""``bench soak``: a million tokens and more through one state; does a token still cost what it cost?

Reading runs in stretches; at the end of each decade (10, 100, 1,000, ... tokens) some ids are generated on a
copy of the state, timed, and everything is looked at: seconds a token, resident memory, bytes of state, bytes
that the end of a turn writes to disk, and whether each number in the state and in the scores is finite. From
10,000 tokens on a conversation of 4,096 answers beside it, turn by turn: what a machine does to both cancels.
The state and the rows so far are written every minute, so a soak that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import statistics
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from infinichat.bench.peers import Say, prompt_ids
from infinichat.bench.report import Report, Row, machine_now
from infinichat.config import load_settings
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.load import load_engine
from infinichat.errors import ModelError, StoreError, UsageError
from infinichat.messages import SamplingOptions
from infinichat.paths import default_paths
from infinichat.protocols import FeedMode
from infinichat.session.chain import document_pieces
from infinichat.store.records import SnapshotHeader
from infinichat.store.snapshot_file import read_snapshot, write_snapshot

STRETCH = 4096
"""Ids given to one ``feed``."""

SAVE_EVERY_S = 60.0

FIRST_MARK = 10
"""Tokens after which everything is looked at for the first time."""

ROWS = 2
"""Changes with what a row holds: a soak goes on only from rows of its own kind."""

PROBE = 32
"""Ids generated to time an answer."""

YOUNG, TURNS = 4096, 7
"""Tokens of a conversation that answers beside the soaked one, and how many times each answers in turn."""


@dataclass(slots=True)
class Progress:
    """Where a soak is: tokens streamed, seconds that took, rows so far; ``decade_*`` since the last row.
    ``decade_cpu`` is processor time: what a token costs also where other programs take the cores away."""

    tokens: int = 0
    seconds: float = 0.0
    decade_tokens: int = 0
    decade_seconds: float = 0.0
    decade_cpu: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


def soak(
    model: str | None,
    *,
    tokens: int,
    threads: int | None = None,
    window: int | None = None,
    weights: str = "auto",
    text: Path | None = None,
    restart: bool = False,
    folder: Path | None = None,
    say: Say,
) -> Report:
    """Stream ``tokens`` ids, of ``text`` over and over or else made up, and report by decade.

    ``folder`` is where the state is kept meanwhile (default: under the cache folder).
    """
    settings = load_settings(default_paths())
    changes: dict[str, Any] = {"threads": threads, "window": window, "dtype": weights}
    changes = {name: value for name, value in changes.items() if value is not None}
    engine = load_engine(model, replace(settings, engine=replace(settings.engine, **changes)))
    run = _Soak(engine, _stream(engine, text), folder or default_paths().cache / "bench", say)
    return run.until(tokens, restart=restart)


class _Soak:
    def __init__(self, engine: InfiniEngine, source: _Stream, folder: Path, say: Say) -> None:
        self.engine, self.source, self.say = engine, source, say
        key = hashlib.sha256(f"{ROWS} {engine.info.fingerprint} {engine.info.dtype} {source.name}".encode())
        self.state_file = folder / f"soak-{key.hexdigest()[:12]}.safetensors"
        self.progress_file = self.state_file.with_suffix(".json")

    def until(self, tokens: int, *, restart: bool) -> Report:
        progress, state = (Progress(), None) if restart else self._kept()
        if state is None:
            state = self.engine.new_state()
        elif progress.tokens:
            self.say(f"going on after {progress.tokens:,} tokens; --restart begins again")
        saved = time.monotonic()
        while progress.tokens < tokens:
            stop = min(_next_mark(progress.tokens), tokens, progress.tokens + STRETCH)
            self._stretch(state, progress, stop, tokens)
            if progress.tokens in (_next_mark(progress.tokens - 1), tokens):
                progress.rows.append(self._look(state, progress))
                progress.decade_tokens, progress.decade_seconds, progress.decade_cpu = 0, 0.0, 0.0
            if time.monotonic() - saved > SAVE_EVERY_S:
                self._keep(state, progress)
                saved = time.monotonic()
        self._keep(state, progress)
        return self._report(progress, tokens)

    def _stretch(self, state: Any, progress: Progress, stop: int, total: int) -> None:
        ids = self.source.ids(progress.tokens, stop)
        start, cpu = time.perf_counter(), time.process_time()
        # As a document is read: what is left out of that is made up for before somebody looks.
        looked_at = stop in (_next_mark(progress.tokens), total)
        pieces: list[tuple[FeedMode, tuple[int, ...]]] = [("read", tuple(ids))]
        if looked_at:
            pieces = document_pieces(ids)
        for mode, part in pieces:
            for _ in self.engine.feed(state, part, mode=mode):
                pass
        seconds = time.perf_counter() - start
        progress.decade_cpu += time.process_time() - cpu
        progress.decade_tokens += len(ids)
        progress.decade_seconds += seconds
        progress.seconds += seconds
        progress.tokens = stop
        self.say(f"{stop:,} tokens, {1e3 * seconds / len(ids):.3f} ms a token")

    def _look(self, state: Any, progress: Progress) -> dict[str, Any]:
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in state.to_tensors().values())
        decode_s = resume_s = disk_mb = 0.0
        if finite:
            try:
                self._keep(state, progress)
                disk_mb = self.state_file.stat().st_size / 1e6
                decode_s, resume_s = self._answer(progress)
            except ModelError:
                finite = False
        row = {
            "history": progress.tokens,
            "tokens_per_s": progress.decade_tokens / progress.decade_seconds,
            "cpu_ms": 1e3 * progress.decade_cpu / progress.decade_tokens,
            "decode_ms": 1e3 * decode_s,
            "resume_s": resume_s,
            "rss_mb": psutil.Process().memory_info().rss / 1e6,
            "state_mb": self.engine.state_bytes(state) / 1e6,
            "disk_mb": disk_mb,
            "finite": finite,
            "written": sum(layer.written for layer in self.engine.layer_memory(state)),
        }
        if finite and progress.tokens > 2 * YOUNG:
            row["to_young"] = self._beside_young(progress)
        self.say(
            f"-- {progress.tokens:,} tokens: reading {row['tokens_per_s']:.0f} tokens/s "
            f"({row['cpu_ms']:.3f} ms of processor a token), "
            f"answering {row['decode_ms']:.1f} ms a token{_beside(row)}, "
            f"back from disk in {row['resume_s']:.2f} s, RAM {row['rss_mb']:.0f} MB, "
            f"state {row['state_mb']:.2f} MB, {row['disk_mb']:.2f} MB to disk, "
            f"{'all numbers finite' if finite else 'NOT FINITE'}"
        )
        return row

    def _answer(self, progress: Progress) -> tuple[float, float]:
        """Seconds an id takes to generate, and seconds from the state on disk to the first id, on a copy.
        Raises ``ModelError`` when a score is not finite."""
        begin = time.perf_counter()
        dump = read_snapshot(self.state_file, expected=self._header(progress.tokens))
        copy = self.engine.load_state(dump)
        options = SamplingOptions(temperature=0, max_tokens=PROBE)
        start = first = time.perf_counter()
        for number, _ in enumerate(self.engine.generate(copy, options, end_ids=())):
            if number == 0:
                first = time.perf_counter()
        return (time.perf_counter() - start) / PROBE, first - begin

    def _beside_young(self, progress: Progress) -> float:
        """How many times as long as after ``YOUNG`` tokens an id takes to generate: the median over turns in
        which both conversations answer. Both have as many tokens in the segment that is not full."""
        count = YOUNG + progress.tokens % self.engine.info.segment
        young = self.engine.new_state()
        for mode, part in document_pieces(self.source.ids(0, count)):
            for _ in self.engine.feed(young, part, mode=mode):
                pass
        old = self.engine.load_state(read_snapshot(self.state_file, expected=self._header(progress.tokens)))
        ratios = [self._id_s(old) / self._id_s(young) for _ in range(1 + TURNS)]
        return statistics.median(ratios[1:])

    def _id_s(self, state: Any) -> float:
        """Median seconds of an id of an answer, after the first."""
        times = [time.perf_counter()]
        options = SamplingOptions(temperature=0, max_tokens=PROBE)
        for _ in self.engine.generate(state, options, end_ids=()):
            times.append(time.perf_counter())
        return statistics.median(b - a for a, b in itertools.pairwise(times[1:]))

    def _keep(self, state: Any, progress: Progress) -> None:
        self.state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_snapshot(self.state_file, self.engine.dump_state(state), header=self._header(progress.tokens))
        temporary = self.progress_file.with_suffix(".tmp")
        values = asdict(progress)
        temporary.write_text(json.dumps(values), encoding="utf-8")
        os.replace(temporary, self.progress_file)

    def _kept(self) -> tuple[Progress, Any]:
        """What an earlier run left; nothing when there is none or it cannot be used."""
        try:
            progress = Progress(**json.loads(self.progress_file.read_text(encoding="utf-8")))
            dump = read_snapshot(self.state_file, expected=self._header(progress.tokens))
            return progress, self.engine.load_state(dump)
        except (OSError, ValueError, TypeError, StoreError):
            return Progress(), None

    def _header(self, tokens: int) -> SnapshotHeader:
        info = self.engine.info
        return SnapshotHeader(
            fingerprint=info.fingerprint,
            tokenizer=self.engine.tokenizer.fingerprint,
            chat_format=info.chat_format,
            dtype=info.dtype,
            window=info.window,
            segment=info.segment,
            tokens_seen=tokens,
            chain=hashlib.sha256(struct.pack("<q", tokens)).hexdigest(),
            model=info.name,
        )

    def _report(self, progress: Progress, tokens: int) -> Report:
        info = self.engine.info
        known = {"history", "tokens_per_s", "rss_mb", "state_mb"}
        rows = tuple(
            Row(
                engine="infinichat",
                weights=self.engine.step.weights,
                **{name: row[name] for name in known},
                extra={name: value for name, value in row.items() if name not in known},
            )
            for row in progress.rows
            if row["history"] <= tokens
        )
        note = f"{self.source.name}; answering (and from disk to the first id): " + ", ".join(
            f"{row.extra['decode_ms']:.1f} ms a token{_beside(row.extra)} ({row.extra['resume_s']:.2f} s) "
            f"at {row.history:,}"
            for row in rows
        )
        finite = all(row.extra["finite"] for row in rows)
        notes = (note, "every number finite" if finite else "a number was NOT finite")
        return Report("soak", info.device, info.threads, rows, machine_now(), notes)


@dataclass(frozen=True, slots=True)
class _Stream:
    """An endless stream of ids that can be entered anywhere."""

    name: str
    pool: Sequence[int]

    def ids(self, start: int, stop: int) -> list[int]:
        return [self.pool[place % len(self.pool)] for place in range(start, stop)]


def _stream(engine: InfiniEngine, text: Path | None) -> _Stream:
    if text is None:
        size = engine.model.config.vocab_size
        return _Stream("made-up ids", tuple(i % size for i in prompt_ids(100_003)))
    try:
        words = text.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{text} cannot be read ({error.strerror}). Next: give another --file.") from error
    # Line by line: a tokenizer needs some hundred bytes a token, and this is about memory.
    ids = array(
        "i", (token for line in words.splitlines(keepends=True) for token in engine.tokenizer.encode(line))
    )
    if not ids:
        raise UsageError(f"{text} holds no text. Next: give --file a text file.")
    return _Stream(f"{text.name}, {len(ids):,} tokens over and over", ids)


def _beside(row: Mapping[str, Any]) -> str:
    return f", {row['to_young']:.2f} times as long as after {YOUNG:,}" if "to_young" in row else ""


def _next_mark(tokens: int) -> int:
    """The next power of ten after ``tokens``, from ``FIRST_MARK`` on."""
    return max(FIRST_MARK, 10 ** (math.floor(math.log10(tokens)) + 1)) if tokens > 0 else FIRST_MARK
