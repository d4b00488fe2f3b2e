"""What the base model answers to general questions: computed once, kept, and held on to while a memory is
trained."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import torch

from infinichat.corpus.conversations import SINKS, SYSTEM, Stream, StreamText
from infinichat.corpus.filler import Filler
from infinichat.corpus.general import general_questions
from infinichat.model.loading import LoadedModel
from infinichat.training.plain import CONTROLS, offsets_of

LENGTH = 24
"""Tokens of an answer; more of it teaches nothing that its beginning does not."""

BATCH = 32


@torch.inference_mode()
def base_answers(loaded: LoadedModel, questions: list[str]) -> list[tuple[str, str]]:
    """Each question with the first ``LENGTH`` tokens of the greedy answer after the system prompt. The
    memory is empty, so it adds nothing."""
    encode, end = offsets_of(loaded.tokenizer), loaded.tokenizer.control_id(CONTROLS[1])
    prompts: list[list[int]] = [
        encode(f"{SYSTEM}<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        for q in questions
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        longest = max(len(prompts[number]) for number in batch)
        ids = torch.full((len(batch), longest), end)
        mask = torch.zeros_like(ids)
        for row, number in enumerate(batch):
            ids[row, longest - len(prompts[number]) :] = torch.tensor(prompts[number])
            mask[row, longest - len(prompts[number]) :] = 1
        said = loaded.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        for number, row in zip(batch, said[:, longest:].tolist(), strict=True):
            answers[number] = loaded.tokenizer.decode(row[: row.index(end)] if end in row else row)
    return [(question, answers[number]) for number, question in enumerate(questions)]


def general_answers(
    loaded: LoadedModel, file: Path, filler: Filler, *, count: int, seed: int, report: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Questions and the base's answers from ``file``, which is written when it is not there."""
    if not file.exists():
        questions = general_questions(random.Random(f"{seed}/general"), filler, count)
        report(f"the base answers {len(questions)} general questions")
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(base_answers(loaded, questions)), encoding="utf-8")
        os.replace(temporary, file)
    return [(question, answer) for question, answer in json.loads(file.read_text(encoding="utf-8"))]


def general_streams(pairs: list[tuple[str, str]], loaded: LoadedModel, rng: random.Random) -> list[Stream]:
    """One stream for each, after the system prompt or the attention sinks alone; answers that were cut stay
    open."""
    tokenizer = offsets_of(loaded.tokenizer)
    streams = []
    for question, answer in pairs:
        text = StreamText()
        text.text = rng.choice((SYSTEM, SINKS))
        text.turn("user", question)
        text.text += f"<|im_start|>assistant\n{answer}"
        streams.append(text.encode(tokenizer))
    return streams
