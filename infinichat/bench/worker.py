"""The child process of ``wire.py`` for the engines that are Python: reads a JSON line, does it, answers.

``python -m infinichat.bench.worker infinichat --model NAME --threads 2`` serves our engine; ``transformers``
and ``transformers-generate`` serve transformers' Llama over the very same weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from infinichat.bench.wire import Task
from infinichat.errors import InfiniChatError


class Peer(Protocol):
    """What is measured. Raises ``InfiniChatError`` for what it cannot do."""

    def describe(self) -> dict[str, Any]: ...

    def read(self, ids: Sequence[int]) -> None:
        """Forget everything, read ``ids``, choose the next id."""
        ...

    def decode(self, count: int) -> list[float]:
        """Go on greedily for ``count`` ids; seconds of each."""
        ...

    def suspend(self) -> int:
        """Write the state to a file and drop it; its bytes."""
        ...

    def resume(self) -> None:
        """Load that file and choose the next id."""
        ...

    def state_bytes(self) -> int: ...

    def read_document(self, ids: Sequence[int]) -> None:
        """As ``read``, in the way in which documents are read."""
        ...

    def roof(self, task: Task, history: int) -> dict[str, float]:
        """What a token needs and what the machine can do (``roofs.Roof``)."""
        ...


def serve(peer: Peer, lines: TextIO, answers: TextIO, *, load_s: float) -> None:
    """Answer calls until the input ends."""
    for line in lines:
        call = json.loads(line)
        try:
            answer = _answer(peer, call, load_s)
        except InfiniChatError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Load the engine named by the arguments and serve it on stdin and stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--window", type=int)
    args = parser.parse_args(argv)
    # Libraries print to stdout now and then; the answers must be alone there.
    answers, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    peer = _load(args)
    serve(peer, sys.stdin, answers, load_s=time.perf_counter() - start)
    return 0


def _answer(peer: Peer, call: dict[str, Any], load_s: float) -> dict[str, Any]:
    start = time.perf_counter()
    match call["do"]:
        case "describe":
            return {**peer.describe(), "load_s": load_s}
        case "read":
            peer.read(call["ids"])
        case "document":
            peer.read_document(call["ids"])
        case "roof":
            return peer.roof(call["task"], call["history"])
        case "decode":
            return {"seconds": peer.decode(call["count"])}
        case "suspend":
            size = peer.suspend()
            return {"seconds": time.perf_counter() - start, "bytes": size}
        case "resume":
            peer.resume()
        case "memory":
            return {"rss_mb": _rss_mb(), "state_mb": peer.state_bytes() / 1e6}
        case other:
            return {"error": f"there is no call {other!r}"}
    return {"seconds": time.perf_counter() - start}


def _rss_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def _load(args: argparse.Namespace) -> Peer:
    if args.peer == "infinichat":
        # As in a chat: before anything imports torch.
        from infinichat.engine.threads import prepare_environment

        prepare_environment()
        from infinichat.bench.peer_infinichat import InfinichatPeer

        return InfinichatPeer(args.model, threads=args.threads, weights=args.weights, window=args.window)
    from infinichat.bench.peer_transformers import TransformersPeer

    whole = args.peer == "transformers-generate"
    return TransformersPeer(args.model, threads=args.threads, weights=args.weights, whole_generate=whole)


if __name__ == "__main__":
    sys.exit(main())
