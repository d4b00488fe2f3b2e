"""``stories``: what people tell a chat with a story or a feeling around it, asked for in other words.

"So I went and did it, I opened a little flower shop. It's called Petal & Twine, hope that's not too cheesy.",
and much later "What name did I give my florist business?": 120 messages, twice as long as those of
``everyday``, written without sight of the corpus and not trained on. The default checkpoint's write gate was
chosen with them, so they are a harder measure, but not an untouched one.
"""

from __future__ import annotations

from typing import Any

from infinichat.evals.bench import Bench
from infinichat.evals.everyday import measure_among
from infinichat.evals.task import Options, Report


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """As ``everyday.measure``."""
    return measure_among("stories", bench, options, transcript)
