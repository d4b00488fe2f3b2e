"""The books of the comparison as ids: a tokenizer of their own, one file of ids, blocks in random order.

    <out>/tokenizer/   byte-level BPE with single digits, learned from the start of each training book
    <out>/train.ids    the training books' ids one after the other, little-endian (2 bytes each, or 4)

Made once, then read: every model gets the same blocks in the same order, which follows from the seed alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from infinichat.errors import UsageError
from infinichat.model.tokenizer import SpecialTokens, Tokenizer, folder_tokenizer
from infinichat.training.blocks import Batch, Share, Step, end_id
from infinichat.training.lm_model import BYTES, byte_tokenizer, tokenizer_files
from infinichat.training.texts import Part, Texts

END = "<|endoftext|>"
Ids = npt.NDArray[np.unsignedinteger[Any]]


def tokenizer_for(texts: Texts, out: Path, *, named: str | None, vocabulary: int) -> Tokenizer:
    """The tokenizer in ``named``, a folder or "bytes"; without, the one in ``out``, which is learned first
    where there is none yet."""
    if named is not None:
        return byte_tokenizer() if named == BYTES else folder_tokenizer(Path(named))
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The file that is looked for comes last.
        for name, text in reversed(tokenizer_files(learned_tokenizer(texts, vocabulary)).items()):
            (folder / name).write_text(text, encoding="utf-8")
    return folder_tokenizer(folder)


def learned_tokenizer(texts: Texts, vocabulary: int) -> Tokenizer:
    """Byte-level BPE of ``vocabulary`` tokens from the first piece of each document. Each digit is a token,
    as in the larger models' tokenizers: a number is then as long as it has digits."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((next(document, "") for document in texts.documents("train")), trainer)
    return Tokenizer(json.loads(bpe.to_str()), SpecialTokens(eos=END, pad=END))


def ids_of_documents(texts: Texts, part: Part, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Each document's ids with its end mark."""
    end = end_id(tokenizer)
    for document in texts.documents(part):
        ids = [token for piece in document for token in tokenizer.encode(piece)]
        yield ids if end is None else [*ids, end]


def training_ids(texts: Texts, tokenizer: Tokenizer, out: Path) -> Ids:
    """The training books' ids, mapped from ``<out>/train.ids``, which is written first where there is none
    that was made with this tokenizer."""
    file, record = out / "train.ids", out / "train.ids.json"
    form = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    wanted = {"tokenizer": tokenizer.fingerprint, "text": texts.train.name, "bytes": form.itemsize}
    if not record.exists() or json.loads(record.read_text(encoding="utf-8")) != wanted:
        part = file.with_suffix(".part")
        with part.open("wb") as ids:
            for document in ids_of_documents(texts, "train", tokenizer):
                ids.write(np.asarray(document, dtype=form).tobytes())
        os.replace(part, file)
        record.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    if not file.stat().st_size:
        raise UsageError(f"{texts.train} has no text to train on. Name a folder with books.")
    mapped: Ids = np.memmap(file, dtype=form, mode="r")
    return mapped


def held_out_books(texts: Texts, tokenizer: Tokenizer, *, most: int, least: int) -> list[Tensor]:
    """The first ``most`` held-out books of at least ``least`` tokens, as int64 ids. Raises ``UsageError``
    when there is none."""
    found: list[Tensor] = []
    for ids in ids_of_documents(texts, "validation", tokenizer):
        if len(ids) >= least:
            found.append(torch.tensor(ids))
        if len(found) == most:
            break
    if not found:
        raise UsageError(
            f"{texts.validation or texts.train} holds out no book of {least:,} tokens. Name some with "
            "--validation_file."
        )
    return found


@dataclass(frozen=True, slots=True)
class ShuffledBlocks:
    """Steps of ``rows`` blocks of ``size`` ids for each process, every block once an epoch, in an order that
    follows from the seed."""

    ids: Ids
    size: int
    rows: int
    seed: int
    share: Share

    def steps(self, first: int) -> Iterator[Step]:
        """Steps from number ``first`` on, without end. Raises ``UsageError`` when there is too little text
        for one."""
        of_step = self.rows * self.share.count
        there = len(self.ids) // self.size // of_step
        if there == 0:
            raise UsageError(
                f"the training text has {len(self.ids):,} tokens, and a step takes {of_step} blocks of "
                f"{self.size:,}. Name more text, or lower --block_size or --per_device_train_batch_size."
            )
        number = first
        while True:
            epoch, at = divmod(number, there)
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.ids) // self.size)
            for step in range(at, there):
                start = step * of_step + self.rows * self.share.index
                ids = self._blocks(order[start : start + self.rows])
                yield Step([Batch(ids, ids)], epoch, step == there - 1)
            number += there - at

    def _blocks(self, chosen: npt.NDArray[np.int64]) -> Tensor:
        rows = [self.ids[at * self.size : (at + 1) * self.size].astype(np.int64) for at in chosen]
        return torch.from_numpy(np.stack(rows))
