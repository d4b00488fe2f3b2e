"""``infinichat sessions``: what is on disk, without a model. No verb here loads one or imports torch.

NAME is a session's name, its id, or the first six or more characters of its id.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json, whole
from infinichat.cli.text import table
from infinichat.errors import InfiniChatError
from infinichat.messages import Message
from infinichat.session.recovery import recover_interrupted
from infinichat.text.documents import read_text
from infinichat.text.figures import ago, counted
from infinichat.text.harmless import one_line

if TYPE_CHECKING:
    from infinichat.store import SearchHit, SessionRecord, Store

_SPEAKER = {"system": "system", "user": "you", "assistant": "model", "document": "document"}
_DAY = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_list, query=None, deleted=False, limit=None, json=False)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs (list when there is none)")

    verb = _verb(verbs, "list", _list, "newest first, pinned ones on top")
    verb.add_argument("--query", metavar="TEXT", help="only sessions with TEXT in their name, title or words")
    verb.add_argument("--deleted", action="store_true", help="the deleted ones, which undelete brings back")
    verb.add_argument("--limit", type=whole(1), metavar="N", help="at most N")
    add_json(verb)

    verb = _verb(verbs, "show", _show, "the words of one session")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--limit", type=whole(1), metavar="N", help="only the newest N messages")
    add_json(verb)

    verb = _verb(verbs, "search", _search, "every message with these words")
    verb.add_argument("words", nargs="+", metavar="WORD")
    verb.add_argument("--session", metavar="NAME", help="only in this session")
    verb.add_argument("--limit", type=whole(1), default=50, metavar="N", help="at most N hits; default 50")
    add_json(verb)

    verb = _verb(verbs, "rename", _rename, "give a session another name")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("new_name", metavar="NEW")

    verb = _verb(verbs, "delete", _delete, "delete sessions; undelete brings them back for a while")
    verb.add_argument("names", nargs="+", metavar="NAME")

    verb = _verb(verbs, "undelete", _undelete, "bring deleted sessions back")
    verb.add_argument("names", nargs="+", metavar="NAME")

    verb = _verb(verbs, "export", _export, "one session as JSON (can be imported again) or Markdown")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--format", choices=("json", "markdown"), help="default: by FILE's ending, else json")
    verb.add_argument("-o", "--output", metavar="FILE", help="default: stdout")

    verb = _verb(verbs, "import", _import, "a session from an exported JSON file")
    verb.add_argument("file", metavar="FILE", help="- is stdin")

    verb = _verb(verbs, "branch", _branch, "a new session that goes on from a message of another one")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument(
        "message", nargs="?", metavar="MESSAGE", help="id or the first characters of one; default: last"
    )
    verb.add_argument("--name", dest="new_name", metavar="NEW", help="name of the new session")


def run(args: argparse.Namespace, context: Context) -> int:
    verb: Callable[[argparse.Namespace, Context, Store], None] = args.verb
    with context.open_store() as store:
        verb(args, context, store)
    return 0


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace, Context, Store], None],
    text: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(verb=function)
    return parser


def _list(args: argparse.Namespace, context: Context, store: Store) -> None:
    records = store.sessions(query=args.query, deleted=args.deleted, limit=args.limit)
    if args.json:
        context.console.json([record_json(record) for record in records])
    elif records:
        context.console.line(sessions_table(records))
    else:
        context.console.status("there are no deleted sessions" if args.deleted else _nothing(args.query))


def _nothing(query: str | None) -> str:
    if query:
        return f"no session has '{query}' in its name, title or words. Next: infinichat sessions list"
    return 'there are no sessions yet. Next: infinichat, or infinichat ask "…"'


def _settled(store: Store, name: str) -> SessionRecord:
    """The session, with the answer that a crash cut off put where it belongs."""
    record = store.session(name)
    recover_interrupted(store, record.id)
    return store.session(record.id)


def sessions_table(records: list[SessionRecord]) -> str:
    """The list that people see; a star marks a pinned session."""
    rows = [
        [
            ("* " if record.pinned else "") + one_line(record.name, 30),
            one_line(record.title or "", 40),
            f"{record.messages:,}",
            f"{record.tokens_seen:,}",
            ago(record.updated),
        ]
        for record in records
    ]
    return table(["NAME", "TITLE", "MESSAGES", "TOKENS", "USED"], rows, right=(2, 3))


def record_json(record: SessionRecord) -> dict[str, object]:
    return {
        "id": record.id,
        "name": record.name,
        "title": record.title,
        "model": record.model,
        "tokens_seen": record.tokens_seen,
        "messages": record.messages,
        "created": record.created,
        "updated": record.updated,
        "pinned": record.pinned,
        "deleted_at": record.deleted_at,
    }


def _show(args: argparse.Namespace, context: Context, store: Store) -> None:
    record = _settled(store, args.name)
    messages = store.path(record.id, limit=args.limit)
    console = context.console
    if args.json:
        console.json({**record_json(record), "messages": [message_json(message) for message in messages]})
        return
    console.status(
        f"{record.name}: {counted(record.messages, 'message')}, {record.tokens_seen:,} tokens seen"
    )
    for message in messages:
        console.line(transcript_entry(message))


def message_json(message: Message) -> dict[str, object]:
    return {
        "id": message.id,
        "parent": message.parent,
        "role": message.role,
        "content": message.content,
        "reason": message.reason,
        "title": message.title,
        "created": message.created,
        "model": message.model,
    }


def transcript_entry(message: Message) -> str:
    """One message for reading: who, the words, and how it ended when that was not the ordinary way.

    A document is shown by its title and length, because it may be a book.
    """
    speaker = _SPEAKER[message.role]
    if message.role == "document":
        return (
            f"[{message.id[:8]}] {speaker}: {message.title}, {counted(len(message.content), 'character')}\n"
        )
    ending = "" if message.reason in {"complete", "stop"} else f"\n({message.reason})"
    return f"[{message.id[:8]}] {speaker}:\n{message.content}{ending}\n"


def _search(args: argparse.Namespace, context: Context, store: Store) -> None:
    query = " ".join(args.words)
    session_id = store.session(args.session).id if args.session else None
    hits = store.search(query, session_id=session_id, limit=args.limit)
    if args.json:
        context.console.json([hit_json(hit) for hit in hits])
    elif not hits:
        context.console.status(f"nothing was ever said with '{query}' in it")
    for hit in [] if args.json else hits:
        who = hit.title or _SPEAKER[hit.role]
        words = one_line(hit.snippet, 240)
        context.console.line(f"{hit.session_name}  [{hit.message_id[:8]}] {ago(hit.created)}, {who}: {words}")


def hit_json(hit: SearchHit) -> dict[str, object]:
    return {
        "session": hit.session_name,
        "session_id": hit.session_id,
        "message": hit.message_id,
        "role": hit.role,
        "title": hit.title,
        "created": hit.created,
        "snippet": hit.snippet,
        "matches": [list(match) for match in hit.matches],
    }


def _rename(args: argparse.Namespace, context: Context, store: Store) -> None:
    record = store.session(args.name)
    store.rename(record.id, args.new_name)
    context.console.status(f"'{record.name}' is now '{args.new_name}'")


def _delete(args: argparse.Namespace, context: Context, store: Store) -> None:
    keep = context.settings().store.keep_deleted_days
    records = [store.session(name) for name in args.names]  # all of them, before the first one goes
    for record in records:
        store.delete(record.id)
        context.console.status(
            f"deleted '{record.name}'; within {keep:g} days it comes back with: "
            f"infinichat sessions undelete {record.id[:8]}"
        )
    store.purge_deleted(older_than_s=keep * _DAY)


def _undelete(args: argparse.Namespace, context: Context, store: Store) -> None:
    for name in args.names:
        record = store.undelete(store.session(name, deleted=True).id)
        context.console.status(f"'{record.name}' is back")


def _export(args: argparse.Namespace, context: Context, store: Store) -> None:
    record = _settled(store, args.name)
    text = store.export_session(record.id, args.format or format_for(args.output or ""))
    if not args.output or args.output == "-":
        context.console.raw(text if text.endswith("\n") else text + "\n")
        return
    write_text(Path(args.output), text)
    context.console.status(f"wrote {args.output}")


def format_for(file: str) -> Literal["json", "markdown"]:
    """The export format that a file's ending asks for."""
    return "markdown" if file.endswith((".md", ".markdown")) else "json"


def write_text(file: Path, text: str) -> None:
    """Write an exported text; raises ``InfiniChatError`` when that is not possible."""
    try:
        file.expanduser().write_text(text, encoding="utf-8")
    except OSError as error:
        raise InfiniChatError(
            f"'{file}' cannot be written ({error.strerror}). Next: choose another place"
        ) from error


def _import(args: argparse.Namespace, context: Context, store: Store) -> None:
    text = context.console.piped_text() if args.file == "-" else read_text(Path(args.file).expanduser())
    record = store.import_session(text)
    context.console.line(record.name)


def _branch(args: argparse.Namespace, context: Context, store: Store) -> None:
    record = _settled(store, args.name)
    message_id = _message_id(store, record, args.message)
    context.console.line(store.branch(record.id, message_id, args.new_name).name)


def _message_id(store: Store, record: SessionRecord, prefix: str | None) -> str:
    if prefix is None:
        if record.tip is None:
            raise InfiniChatError(
                f"'{record.name}' has no message to branch from. Next: say something in it first"
            )
        return record.tip
    found = [message.id for message in store.path(record.id) if message.id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    what = "no message" if not found else f"{len(found)} messages"
    raise InfiniChatError(
        f"{what} of '{record.name}' has an id that begins with '{prefix}'. "
        f"Next: infinichat sessions show {record.name}"
    )
