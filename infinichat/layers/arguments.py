"""What the layers' arguments may be: both spellings of the original, and sentences for everything else.

dingo-actual/infini-transformer names some arguments differently in its README and in its code
(``positional_embedder`` and ``position_embedder``); either is taken here. Whatever else a layer does not know
is refused with the names that it does know, because an option that is silently ignored is worse than an
error. These are plain ``TypeError`` and ``ValueError``: the layers are for anyone's network.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any, TypeVar

T = TypeVar("T")

OTHER_SPELLINGS = {
    "position_embedder": "positional_embedder",
    "dim_embedding_pct": "dim_embeddings_pct",
    "length_scale": "len_scale",
}
"""Our name, which is that of the original's code, and the name in the original's README."""


def either_spelling(owner: type, others: dict[str, Any], name: str, value: T, default: T) -> T:
    """The argument ``name``, which may stand in ``others`` (removed there) under its other spelling.

    Raises ``TypeError`` where both are given.
    """
    other = OTHER_SPELLINGS[name]
    if other not in others:
        return value
    if value is not default and value != default:
        raise TypeError(
            f"{owner.__name__} got both {name} and {other}, two spellings of one argument; give one."
        )
    taken: T = others.pop(other)
    return taken


def refuse_unknown(owner: type, others: Collection[str]) -> None:
    """Raise ``TypeError`` with all valid names if anything is left over."""
    if not others:
        return
    parameters = inspect.signature(owner).parameters.values()
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    known += [OTHER_SPELLINGS[name] for name in known if name in OTHER_SPELLINGS]
    got = ", ".join(sorted(others))
    raise TypeError(f"{owner.__name__} does not know the argument {got}; valid are {', '.join(known)}.")


def require_counts(owner: type, **values: object) -> None:
    """Raise ``ValueError`` unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{owner.__name__}: {name} is {value!r}; it must be a whole number of at least 1."
            )


def require_number(owner: type, name: str, value: object, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{owner.__name__}: {name} is {value!r}; it must be a number from {low} to {high}.")


def require_choice(owner: type, name: str, value: object, valid: Collection[str]) -> None:
    """Raise ``ValueError`` with the valid names unless ``value`` is one of them."""
    if value not in valid:
        raise ValueError(f"{owner.__name__}: {name} is {value!r}; valid are {', '.join(sorted(valid))}.")
