"""Runs one part of a conversation again and again, each time in a forked process that kills itself with
SIGKILL at a later call, and writes one JSON line for what was found on disk afterwards.

    python crash_runner.py SCENARIO TEMPLATE WORK

Every C call that can write (an SQL statement, a file write, a rename, an fsync, ...) is a place to die at;
the count of such calls is the only difference between the runs. ``promised`` is what had returned before the
death.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from infinichat.paths import Paths
from infinichat.protocols import StateDump, TensorRecord
from infinichat.store import Feed, SnapshotHeader, Store

WRITING = (
    *(
        "execute",
        "executemany",
        "open",
        "fdopen",
        "write",
        "flush",
        "fsync",
        "lseek",
        "truncate",
        "ftruncate",
    ),
    *("close", "chmod", "mkdir", "replace", "rename", "unlink", "remove", "rmdir"),
)
FP = "f" * 64
DUMP = StateDump({"M": TensorRecord("U8", (5000,), bytes(range(250)) * 20)}, {"position": "1"})


def header(chain: str, tokens_seen: int) -> SnapshotHeader:
    return SnapshotHeader(FP, "t", "chatml-1", "float32", 1024, 128, tokens_seen, chain, "smol")


def paths_in(root: Path) -> Paths:
    return Paths(root / "data", root / "config", root / "cache", root / "state")


class Promises:
    """One line per call that returned, in a pipe that outlives the writer."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __call__(self, name: str) -> None:
        # The hook is off meanwhile: this write is the test's own.
        hook = sys.getprofile()
        sys.setprofile(None)
        os.write(self.descriptor, f"{name}\n".encode())
        sys.setprofile(hook)


def first_start(root: Path, promise: Promises) -> None:
    with Store.open(paths_in(root)) as store:
        promise("opened")
        session = store.create_session("notes")
        promise("session")
        store.append(session.id, role="user", content="Hello", reason="complete", chain="q")
        promise("Hello")


def a_turn(root: Path, promise: Promises) -> None:
    with Store.open(paths_in(root)) as store:
        session = store.session("notes")
        lock = store.lock(session.id)
        promise("locked")
        question = store.append(session.id, role="user", content="question", reason="complete", chain="q")
        promise("question")
        for text, ids in (("An ans", [1]), ("An answer", [1, 2])):
            store.write_draft(
                session.id,
                parent=question.id,
                content=text,
                ids=ids,
                prompt_ids=[7],
                model="smol",
                fingerprint=FP,
            )
            promise(text)
        store.write_feeds(question.id, FP, [Feed("prefill", (7,), "q1")])
        feeds = [Feed("decode", (1, 2, 3), "turn")]
        store.commit_answer(
            session.id,
            content="An answer.",
            reason="stop",
            chain="a",
            model="smol",
            feeds=feeds,
            fingerprint=FP,
        )
        promise("An answer.")
        store.save_snapshot(session.id, "turn", DUMP, header=header("turn", 100))
        promise("snapshot")
        lock.release()
        store.delete(store.session("old").id)
        promise("deleted")
        store.purge_deleted(older_than_s=0)
        promise("purged")


SCENARIOS = {"first_start": first_start, "a_turn": a_turn}


def make_template(root: Path) -> None:
    """Five saved states, so that one more is thinned, and a session to delete."""
    with Store.open(paths_in(root)) as store:
        session = store.create_session("notes")
        store.append(session.id, role="user", content="Hello", reason="complete", chain="q")
        for n in range(1, 6):
            store.save_snapshot(session.id, f"s{n}", DUMP, header=header(f"s{n}", 90 + n))
        old = store.create_session("old")
        store.append(old.id, role="user", content="forgotten words", reason="complete", chain="q")
        store.save_snapshot(old.id, "old", DUMP, header=header("old", 3))


def die_at(call: int, scenario: Any, root: Path, descriptor: int) -> None:
    """In the forked process: run the scenario and die before the ``call``-th call that may write."""
    left = call

    def hook(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        if event == "c_call" and getattr(argument, "__name__", "") in WRITING:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.setprofile(hook)
    scenario(root, Promises(descriptor))
    sys.setprofile(None)


def inspect(root: Path) -> dict[str, Any]:
    """What the next start finds."""
    with Store.open(paths_in(root)) as store:
        session = store.find_session("notes")
        found: dict[str, Any] = {"verify": store.verify(), "session": session is not None}
        found["old"] = (
            store.find_session("old") is not None or store.find_session("old", deleted=True) is not None
        )
        if session is None:
            return found
        with store.lock(session.id) as lock:
            found["recovered"] = lock.recovered
        draft = store.draft(session.id)
        path = store.path(session.id)
        found["path"] = [message.content for message in path]
        found["draft"] = None if draft is None else [draft.content, len(draft.ids)]
        found["feeds"] = store.feeds(path[-1].id, FP) is not None if path else None
        found["searchable"] = [len(store.search(f'"{message.content}"')) for message in path]
        found["states"] = [
            store.load_snapshot(session.id, row.chain, header=header(row.chain, row.tokens_seen)) == DUMP
            for row in store.snapshot_chains(session.id)
        ]
        found["snapshot"] = store.has_snapshot(session.id, "turn")
        # And the conversation goes on.
        store.append(session.id, role="user", content="next", reason="complete", chain="n")
        found["goes_on"] = store.path(session.id)[-1].content == "next"
        return found


def main() -> None:
    scenario, template, work = SCENARIOS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    template.mkdir()
    if scenario is a_turn:
        make_template(template)
    call, killed = 0, True
    while killed:
        root = work / str(call)
        shutil.copytree(template, root)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            die_at(call, scenario, root, writer)
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        with os.fdopen(reader) as pipe:
            promised = pipe.read().split("\n")[:-1]
        ended = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        print(
            json.dumps(
                {"call": call, "killed": killed, "ended": ended, "promised": promised, **inspect(root)}
            )
        )
        shutil.rmtree(root)
        call += 1


if __name__ == "__main__":
    main()
