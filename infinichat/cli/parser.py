"""Argument parsing: argparse with this project's manners.

A mistake raises ``UsageError`` (one sentence, the next step, exit status 2) instead of printing the whole
usage; abbreviated options are refused, because a script that uses one breaks when an option is added.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from infinichat.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UsageError``."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. Next: {self.prog} --help")

    def parse_all(self, argv: list[str]) -> argparse.Namespace:
        """``parse_args`` whose complaint about an unknown option names the near ones."""
        args, extra = self.parse_known_args(argv)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(extra[0], known, n=3, cutoff=0.6)
            hint = f"; near: {', '.join(near)}" if near else ""
            self.error(f"'{extra[0]}' is not an argument here{hint}")
        return args


def add_model(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """``--model``; ``again``: for a verb of a command that has it, so that it may stand after the verb."""
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        default=argparse.SUPPRESS if again else None,
        help="checkpoint to use instead of the chosen one",
    )


def add_json(parser: argparse._ActionsContainer, what: str = "one JSON document instead of text") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    """``--plot FILE.png``, refused before hours of measuring where nothing can be drawn."""
    parser.add_argument("--plot", type=_picture, metavar="FILE.png", help=what)


def _picture(text: str) -> Path:
    require_matplotlib("--plot")
    return Path(text)


def require_matplotlib(what: str) -> None:
    """Raise ``UsageError`` when ``what`` cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} needs matplotlib. Next: pip install 'infinichat[plot]'")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The sampling options that a single call may change; the rest are settings."""
    group = parser.add_argument_group("sampling (defaults come from the settings)")
    group.add_argument("--max-tokens", type=whole(1), metavar="N", help="longest answer, in tokens")
    group.add_argument("--temperature", type=number(0, 10), metavar="T", help="0 is greedy")
    group.add_argument(
        "--top-p", type=number(0, 1), metavar="P", help="keep the most probable ids up to P in sum"
    )
    group.add_argument(
        "--top-k", type=whole(0), metavar="K", help="keep the K most probable ids; 0 keeps all"
    )
    group.add_argument("--seed", type=whole(0), metavar="N", help="the same seed gives the same text")


def whole(low: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def count(text: str) -> int:
    """An argparse type: a whole number of 1 or more; 16K and 1M are understood (1,024 and its square)."""
    factors = {"k": 1024, "m": 1024 * 1024}
    digits, factor = text.replace("_", ""), 1
    if digits[-1:].lower() in factors:
        digits, factor = digits[:-1], factors[digits[-1].lower()]
    try:
        value = int(digits) * factor
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return value


def counts(text: str) -> tuple[int, ...]:
    """An argparse type: ``count`` between commas."""
    return tuple(count(part) for part in text.split(",") if part)


def names(text: str) -> tuple[str, ...]:
    """An argparse type: names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
