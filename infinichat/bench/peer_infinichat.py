"""Our engine as a peer: the one that ``infinichat`` itself loads, fed through the same interface."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from infinichat.bench.roofs import machine_rates, roof
from infinichat.bench.wire import Task
from infinichat.config import load_settings
from infinichat.engine.load import load_engine
from infinichat.errors import UsageError
from infinichat.messages import SamplingOptions
from infinichat.paths import default_paths
from infinichat.session.chain import document_pieces
from infinichat.store.records import SnapshotHeader
from infinichat.store.snapshot_file import read_snapshot, write_snapshot

GREEDY = SamplingOptions(temperature=0, max_tokens=1)


class InfinichatPeer:
    """``weights`` is "auto" or one of the settings' ``engine.dtype``; ``threads`` None measures."""

    def __init__(
        self,
        model: str | None,
        *,
        threads: int | None = None,
        weights: str = "auto",
        window: int | None = None,
    ) -> None:
        settings = load_settings(default_paths())
        changes: dict[str, Any] = {"dtype": weights}
        changes |= {} if threads is None else {"threads": threads}
        changes |= {} if window is None else {"window": window}
        settings = replace(settings, engine=replace(settings.engine, **changes))
        self.engine = load_engine(model, settings)
        self._state: Any = None
        self._rates: tuple[float, float] | None = None
        self._file = Path(tempfile.mkdtemp(prefix="infinichat-bench-")) / "state.safetensors"

    def describe(self) -> dict[str, Any]:
        info = self.engine.info
        return {
            "engine": "infinichat",
            "weights": self.engine.step.weights,
            "model": info.name,
            "device": info.device,
            "threads": info.threads,
            "window": info.window,
            "trained": info.trained,
        }

    def read(self, ids: Sequence[int]) -> None:
        self._state = self.engine.new_state()
        for _ in self.engine.feed(self._state, ids):
            pass
        self._choose()

    def read_document(self, ids: Sequence[int]) -> None:
        self._state = self.engine.new_state()
        for mode, part in document_pieces(ids):
            for _ in self.engine.feed(self._state, part, mode=mode):
                pass
        self._choose()

    def roof(self, task: Task, history: int) -> dict[str, float]:
        if self._rates is None:
            config = self.engine.model.config
            self._rates = machine_rates(self.engine.model.model.norm.weight.dtype, config.segment)
        return asdict(roof(self.engine, task, history, self._rates))

    def decode(self, count: int) -> list[float]:
        if self._state is None:
            raise UsageError("Nothing was read yet; expected a read before a decode.")
        seconds = []
        # One call for all: what a chat does. No id ends it.
        start = time.perf_counter()
        for _ in self.engine.generate(self._state, replace(GREEDY, max_tokens=count), end_ids=()):
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
        return seconds

    def suspend(self) -> int:
        size = write_snapshot(self._file, self.engine.dump_state(self._state), header=self._header())
        self._state = None
        return size

    def resume(self) -> None:
        dump = read_snapshot(self._file, expected=self._header())
        self._state = self.engine.load_state(dump)
        self._choose()

    def state_bytes(self) -> int:
        return 0 if self._state is None else self.engine.state_bytes(self._state)

    def _choose(self) -> None:
        self.engine.step.logits(self._state.last_hidden).argmax().item()

    def _header(self) -> SnapshotHeader:
        info = self.engine.info
        return SnapshotHeader(
            fingerprint=info.fingerprint,
            tokenizer=self.engine.tokenizer.fingerprint,
            chat_format=info.chat_format,
            dtype=info.dtype,
            window=info.window,
            segment=info.segment,
            tokens_seen=0,
            chain="0" * 64,
            model=info.name,
        )
