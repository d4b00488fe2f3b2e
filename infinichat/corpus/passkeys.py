"""The passkey task of the paper: its words, its filler, and which keys are for training.

One key in ten is for training, chosen by a hash, so that nothing about its digits tells the two kinds apart;
what is measured never uses those. All keys have five digits, the first not 0.
"""

from __future__ import annotations

import hashlib
import random

OPENING = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz "
    "you about the important information there."
)
REPEATED = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
SENTENCE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = " What is the pass key? The pass key is"


def for_training(key: str) -> bool:
    """Whether a key may be trained on; then it is never asked for in a measurement."""
    return hashlib.sha256(f"passkey/{key}".encode()).digest()[0] % 10 == 0


def draw_key(rng: random.Random, *, training: bool = False) -> str:
    """A random key for measuring, or for training."""
    while True:
        key = str(rng.randint(10_000, 99_999))
        if for_training(key) == training:
            return key
