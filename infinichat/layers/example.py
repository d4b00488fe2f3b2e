"""A small next-token model of Mixture-of-Depths and Infini layers, trained with the auxiliary loss.

    python -m infinichat.layers.example --steps 150

prints the next-token loss and the auxiliary loss as they fall, then what the trained model does in inference,
where each row selects as many tokens as its scores say. ``NextTokenModel`` has the arguments of the class of
that name in the original's example; it returns logits, for a cross-entropy applies the softmax itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.layers.mixture_of_depths import MoDInfiniTransformer, selection_loss
from infinichat.layers.positions import YaRNEmbeddings
from infinichat.layers.transformer import InfiniTransformer


class NextTokenModel(nn.Module):
    """ids [B, S] -> (logits [B, S, vocab_size], selected of each MoD layer [B * S, 1], their scores).

    Even layers are ``MoDInfiniTransformer``, odd ones ``InfiniTransformer``; arguments as there. ``causal``
    is True unless told otherwise: a next token that can be seen need not be predicted.
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        num_layers: int,
        dim_hidden: int,
        dim_key: int,
        dim_value: int,
        num_heads: int,
        segment_len: int,
        sampling_factor: float,
        update: str = "linear",
        causal: bool = True,
        init_state_learnable: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        sizes = (embedding_dim, dim_hidden, dim_key, dim_value, num_heads, "ffngeglu", segment_len)

        def layer(number: int) -> InfiniTransformer:
            position = YaRNEmbeddings(dim_key, segment_len, context_len=32768, context_len_ext=65536)
            rest = (update, causal, position, init_state_learnable, dropout)
            if number % 2:
                return InfiniTransformer(*sizes, *rest)
            return MoDInfiniTransformer(*sizes, sampling_factor, *rest)

        self.transformers = nn.ModuleList([layer(number) for number in range(num_layers)])
        self.proj_final = nn.Linear(embedding_dim, vocab_size)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """ids [B, S] int64; see the class."""
        x = self.embedding(ids)
        selected, scores = [], []
        for transformer in self.transformers:
            if isinstance(transformer, MoDInfiniTransformer):
                x, target, logits = transformer(x)
                selected.append(target)
                scores.append(logits)
            else:
                x = transformer(x)
        return self.proj_final(x), selected, scores


@dataclass(frozen=True, slots=True)
class StepLosses:
    """The losses of one training step, in nats: next token, and auxiliary as a mean over MoD layers."""

    next_token: float
    auxiliary: float


def next_token_loss(model: NextTokenModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ids[:, 1:], and the auxiliary loss."""
    logits, selected, scores = model(ids)
    main = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    auxiliary = torch.stack([selection_loss(*pair) for pair in zip(selected, scores, strict=True)])
    return main, auxiliary.mean()


def train_model(
    model: NextTokenModel, batches: Iterable[Tensor], *, learning_rate: float = 3e-3
) -> Iterator[StepLosses]:
    """One optimiser step on the sum of both losses for each of ``batches`` [B, S]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    model.train()
    for ids in batches:
        main, auxiliary = next_token_loss(model, ids)
        optimizer.zero_grad()
        (main + auxiliary).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield StepLosses(main.item(), auxiliary.item())


def walks(count: int, *, vocab_size: int, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """``count`` batches [batch, length] of walks that follow one fixed permutation of the vocabulary, with
    one token in ten at random: a little to learn, and a floor that no model gets under."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))
    for _ in range(count):
        ids = torch.randint(vocab_size, (batch, length), generator=generator)
        jumps = torch.rand(batch, length, generator=generator) < 0.1
        for t in range(1, length):
            ids[:, t] = torch.where(jumps[:, t], ids[:, t], follows[ids[:, t - 1]])
        yield ids


def small_model(vocab_size: int) -> NextTokenModel:
    """Two MoD and two Infini layers of width 32; a quarter of the tokens pass the MoD layers."""
    return NextTokenModel(
        vocab_size,
        embedding_dim=32,
        num_layers=4,
        dim_hidden=64,
        dim_key=16,
        dim_value=16,
        num_heads=2,
        segment_len=16,
        sampling_factor=4,
        update="delta",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print, and show inference on a held-out batch."""
    parser = argparse.ArgumentParser(prog="python -m infinichat.layers.example", description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.manual_seed(arguments.seed)
    vocab_size, batch, length = 32, 8, 64
    model = small_model(vocab_size)
    data = walks(arguments.steps, vocab_size=vocab_size, batch=batch, length=length, seed=arguments.seed + 1)
    for step, losses in enumerate(train_model(model, data), start=1):
        if step == 1 or step % 25 == 0:
            print(f"step {step:4}  next token {losses.next_token:.3f}  auxiliary {losses.auxiliary:.3f}")
    model.eval()
    (held_out,) = walks(1, vocab_size=vocab_size, batch=batch, length=length, seed=arguments.seed + 2)
    with torch.no_grad():
        loss, _ = next_token_loss(model, held_out)
        selected = model(held_out)[1][0].view(batch, length).sum(dim=1)
    print(f"inference  next token {loss.item():.3f}")
    print(f"selected in the first layer, of {length}: {' '.join(str(int(n)) for n in selected)}")


if __name__ == "__main__":
    main()
