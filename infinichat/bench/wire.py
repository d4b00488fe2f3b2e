"""How the measuring process talks to what it measures: one child process per engine, one JSON line per call.

Each engine runs in a process of its own, so that its memory is its own and its threads sleep while another
one is measured. Whatever the engine is written in, it answers the same calls::

    {"do": "describe"}                     {"engine", "weights", "load_s"}
    {"do": "read", "ids": [...]}           {"seconds"}     from nothing to the choice of the first id
    {"do": "document", "ids": [...]}       {"seconds"}     the same as a document is read, where that differs
    {"do": "decode", "count": 16}          {"seconds": [...]}     one for each id, or one for each id's share
    {"do": "suspend"}                      {"seconds", "bytes"}   the state is written to a file and dropped
    {"do": "resume"}                       {"seconds"}     from that file to the choice of the next id
    {"do": "memory"}                       {"rss_mb", "state_mb"}
    {"do": "roof", "task": "decode", "history": 512}    {"bytes", "operations", "bytes_per_s", ...}: of ours

An engine that cannot do something answers {"error": sentence}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Literal, Self

from infinichat.errors import InfiniChatError

Task = Literal["decode", "prefill", "read"]
"""What has a roof."""


class PeerError(InfiniChatError):
    """An engine that was to be measured failed or ended."""


class Child:
    """An engine in a process. A context manager; leaving it ends the process."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(env or {})},
        )
        self._errors: list[str] = []
        # Read all the time: a full pipe would stop the child.
        reader = threading.Thread(target=self._keep_errors, args=(self._process.stderr,), daemon=True)
        reader.start()
        self._reader = reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One call; raises ``PeerError`` with the child's own words when it cannot or has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._process.wait(timeout=10)
            self._reader.join(timeout=1)
            last = next((text for text in reversed(self._errors) if text.strip()), "it said nothing").strip()
            raise PeerError(
                f"{self.name} ended while it was asked to {do}, exit status {self._process.returncode}: "
                f"{last}"
            )
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise PeerError(f"{self.name} answered {line.strip()!r}; expected a JSON object.")
        if "error" in answer:
            raise PeerError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _keep_errors(self, stream: IO[str] | None) -> None:
        if stream is not None:
            for line in stream:
                self._errors = [*self._errors[-50:], line]


def python_peer(name: str, arguments: Sequence[str]) -> Child:
    """An engine of this package, or of transformers, in a Python process."""
    from infinichat.engine.threads import WAITING

    command = [sys.executable, "-m", "infinichat.bench.worker", name, *arguments]
    # The same waiting for all: it is what decides beside other busy processes.
    return Child(name, command, env={**WAITING, "TOKENIZERS_PARALLELISM": "false"})
