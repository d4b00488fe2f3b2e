"""The example runs, learns, and its auxiliary loss falls; the package exports what it promises."""

from __future__ import annotations

import pytest
import torch

import infinichat.layers
from infinichat.layers import example


def test_training_lowers_both_losses() -> None:
    model = example.small_model(vocab_size=16)
    batches = example.walks(40, vocab_size=16, batch=8, length=32, seed=1)
    losses = list(example.train_model(model, batches, learning_rate=1e-2))
    assert len(losses) == 40

    def mean(name: str, part: slice) -> float:
        values = [getattr(step, name) for step in losses[part]]
        return sum(values) / len(values)

    assert mean("auxiliary", slice(-5, None)) < 0.75 * mean("auxiliary", slice(5))
    assert mean("next_token", slice(-5, None)) < 0.5 * mean("next_token", slice(5))


def test_the_model_cannot_see_the_token_it_has_to_predict() -> None:
    model = example.small_model(vocab_size=16).eval()
    (ids,) = example.walks(1, vocab_size=16, batch=2, length=40, seed=3)
    with torch.no_grad():
        before = model(ids)[0]
        ids[:, 30] = (ids[:, 30] + 1) % 16
        after = model(ids)[0]
    torch.testing.assert_close(after[:, :30], before[:, :30])
    assert not torch.allclose(after[:, 30:], before[:, 30:])


def test_the_command_prints_losses_and_what_inference_selects(capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step    1  next token ")
    assert lines[-2].startswith("inference  next token ")
    assert len(lines[-1].split(": ")[1].split()) == 8


def test_the_package_exports_what_it_promises() -> None:
    for name in infinichat.layers.__all__:
        assert hasattr(infinichat.layers, name)
    assert {"CompressiveMemory", "InfiniTransformer", "MoDInfiniTransformer"} <= set(
        infinichat.layers.__all__
    )
    assert {"RoPEEmbeddings", "YaRNEmbeddings", "PositionEmbeddings"} <= set(infinichat.layers.__all__)
