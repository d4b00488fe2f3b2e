"""``infinichat ask``: one question, the answer streamed to stdout.

What is piped in is put after TEXT. Without ``--session`` the question starts a new session, which is kept
like every other; ``--continue`` asks in the session that was used last.
"""

from __future__ import annotations

import argparse
import dataclasses

from infinichat.cli.console import INTERRUPTED
from infinichat.cli.context import Context
from infinichat.cli.parser import add_json, add_sampling
from infinichat.cli.streaming import play
from infinichat.errors import UsageError
from infinichat.messages import SamplingOptions, TurnFinished


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", nargs="?", default="", metavar="TEXT", help="the question; stdin is appended to it"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--session", metavar="NAME", help="ask in this session; it is made when there is none")
    where.add_argument(
        "-c", "--continue", dest="go_on", action="store_true", help="ask in the session used last"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt of a new session")
    add_sampling(parser)
    add_json(parser, "one JSON document at the end instead of streaming text")


def run(args: argparse.Namespace, context: Context) -> int:
    console = context.console
    text = question(args.text, console.piped_text())
    name = _last_session(context) if args.go_on else args.session
    with context.open_session(name, model=args.model, new=name is None, system=args.system) as session:
        pieces: list[str] = []
        on_text = pieces.append if args.json else None
        options = sampling(context, args)
        finished, interrupted = play(session, session.send(text, sampling=options), console, on_text=on_text)
        if finished and args.json:
            console.json(answer(session.name, finished))
        elif finished and not finished.message.content.endswith("\n"):
            console.line()
        if finished and finished.message.reason == "length":
            console.status(
                f'The answer reached its limit. Next: infinichat ask --session {session.name} "go on"'
            )
    return INTERRUPTED if interrupted else 0


def question(text: str, piped: str) -> str:
    """TEXT, then what was piped in after a blank line; raises ``UsageError`` when both are empty."""
    parts = [part for part in (text, piped.rstrip("\n")) if part.strip()]
    if not parts:
        raise UsageError('there is nothing to ask. Next: infinichat ask "…", or pipe a text into it')
    return "\n\n".join(parts)


def sampling(context: Context, args: argparse.Namespace) -> SamplingOptions:
    """The settings' sampling with what this call changes."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    changed = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(context.settings().sampling, **changed)


def answer(session: str, finished: TurnFinished) -> dict[str, object]:
    """What ``--json`` prints."""
    stats = finished.stats
    return {
        "session": session,
        "text": finished.message.content,
        "tokens_in": stats.tokens_in,
        "tokens_out": stats.tokens_out,
        "tokens_seen": stats.tokens_seen,
        "tokens_per_s": stats.tokens_per_s,
        "first_token_s": stats.first_token_s,
        "reason": finished.message.reason,
    }


def _last_session(context: Context) -> str | None:
    with context.open_store() as store:
        last = store.last_session()
    return last.id if last else None
