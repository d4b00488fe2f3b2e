"""The entry point: find the noun, import it, run it, and turn what went wrong into one sentence.

Exit status: 0 success, 1 failure, 2 wrong usage; 130 when Ctrl+C ended the command and 141 when the reader of
a pipe went away, as for every other Unix tool. Options may stand before or after the command's name.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from infinichat import __version__
from infinichat.cli.commands import APP, COMMANDS, Command, find_command, load_module
from infinichat.cli.console import INTERRUPTED, PIPE_CLOSED, Console, log_traceback
from infinichat.cli.context import Context, EngineFactory
from infinichat.cli.parser import Parser, add_model
from infinichat.errors import CancelledError, InfiniChatError
from infinichat.paths import Paths, default_paths

# Options that take a value and may stand before the command's name.
_VALUE_OPTIONS = ("--session", "--model", "--system")


def main(argv: Sequence[str] | None = None, *, engine_factory: EngineFactory | None = None) -> int:
    """Run one command line and return its exit status. ``argv`` excludes the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets its number
            stream.reconfigure(errors="backslashreplace")
    console = Console()
    paths = default_paths()
    try:
        return _run(words, Context(paths, console, engine_factory))
    except SystemExit as leaving:  # argparse after --help or --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except CancelledError as error:
        console.status(str(error) or "stopped")
        return INTERRUPTED
    except InfiniChatError as error:
        console.fail(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        console.end_progress()
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return PIPE_CLOSED
    except Exception as error:
        console.fail(_explain_fault(error, paths))
        return 1


def _run(words: list[str], context: Context) -> int:
    command, rest = _split(words)
    module = load_module(command)
    parser = command_parser(command)
    module.add_arguments(parser)
    status = module.run(parser.parse_all(rest), context)
    context.console.stdout.flush()
    return status


def _split(words: list[str]) -> tuple[Command, list[str]]:
    """The command, and the words without its name; no name means the app."""
    skip = False
    for i, word in enumerate(words):
        if skip:
            skip = False
        elif word in _VALUE_OPTIONS:
            skip = True
        elif not word.startswith("-"):
            return find_command(word), words[:i] + words[i + 1 :]
    return APP, words


def command_parser(command: Command) -> Parser:
    """The parser of one command, before its module adds its own arguments."""
    if command is APP:
        width = max(len(noun.name) for noun in COMMANDS)
        lines = [f"  {noun.name:<{width}}  {noun.help}" for noun in COMMANDS]
        epilog = (
            "commands (each has --help):\n"
            + "\n".join(lines)
            + "\n\nINFINICHAT_HOME moves everything on disk."
        )
        parser = Parser(prog="infinichat", description=f"infinichat: {command.help}.", epilog=epilog)
        parser.add_argument("--version", action="version", version=f"infinichat {__version__}")
    else:
        parser = Parser(prog=f"infinichat {command.name}", description=command.help)
    if command.model:
        add_model(parser)
    return parser


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush is quiet too."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return


def _explain_fault(error: Exception, paths: Paths) -> str:
    kept = log_traceback(paths.log, traceback.format_exc())
    where = f"the details are in {paths.log}" if kept else "the log could not be written"
    return f"a fault in infinichat itself ({type(error).__name__}: {error}); {where}. Next: infinichat doctor"


if __name__ == "__main__":
    sys.exit(main())
