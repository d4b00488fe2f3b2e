"""transformers' own Trainer and PEFT's LoRA train the model as it is: gates and memory projections too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.streamed import Streamed
from tests.model.tiny_infini import KINDS, WINDOWS, Kind, some_ids, tiny_model

pytest.importorskip("accelerate", reason="Trainer needs accelerate: pip install 'infinichat[train]'")
kinds = pytest.mark.parametrize("kind", KINDS)
LENGTH = 24


class Repeating(Dataset[dict[str, Tensor]]):
    """Rows whose second half repeats the first, beyond the window."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        half = some_ids(LENGTH // 2, seed=number)[0] % 4 + 1
        ids = torch.cat((half, half))
        return {"input_ids": ids, "labels": ids}


def trained(model: Any, folder: Path, **changes: Any) -> Any:
    """Train with the stock Trainer; returns it."""
    from transformers import Trainer, TrainingArguments

    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 1,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **{**arguments, **changes}),
        train_dataset=Repeating(),
        eval_dataset=Repeating(),
        compute_metrics=lambda found: {
            "accuracy": float((found.predictions[:, :-1].argmax(-1) == found.label_ids[:, 1:]).mean())
        },
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def model_of(kind: Kind) -> InfiniForCausalLM:
    # A seed with which the gates of both banks let some of these tokens through.
    return tiny_model(memory=kind, dtype=torch.float32, seed=7, **WINDOWS["hard"])


@kinds
def test_the_stock_trainer_trains_gates_and_memory_projections(kind: Kind, tmp_path: Path) -> None:
    model = model_of(kind).as_transformers()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trained(model, tmp_path)
    assert losses(trainer)[-1] < 0.8 * losses(trainer)[0]
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still
    metrics = trainer.evaluate()
    ids = torch.stack([Repeating()[number]["input_ids"] for number in range(8)])
    counted, _ = Streamed(model).evaluate(ids, ids)
    assert metrics["eval_loss"] == pytest.approx(counted.loss / counted.tokens, rel=1e-4)
    assert metrics["eval_accuracy"] == pytest.approx(counted.correct / counted.tokens, abs=1e-6)


def lora(model: InfiniForCausalLM, **changes: Any) -> Any:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install 'infinichat[train]'")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": targets, "modules_to_save": ["memory"]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{**arguments, **changes})
    return peft.get_peft_model(model.as_transformers(), config)


@kinds
def test_lora_trains_the_memory_with_it_and_saves_it(kind: Kind, tmp_path: Path) -> None:
    from peft import PeftModel

    ids = some_ids(LENGTH)
    with torch.no_grad():
        untouched = model_of(kind)(ids).logits
        wrapped = lora(model_of(kind))
        torch.testing.assert_close(wrapped(input_ids=ids).logits, untouched)
    before = {
        name: parameter.detach().clone()
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad
    }
    trainer = trained(wrapped, tmp_path / "run")
    assert losses(trainer)[-1] < 0.95 * losses(trainer)[0]
    after = dict(wrapped.named_parameters())
    assert any(".memory." in name for name in before)
    assert all(".memory." in name or "lora_" in name for name in before)
    assert not [name for name, old in before.items() if torch.equal(old, after[name])]
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.eval()
    with torch.no_grad():
        want = wrapped(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(model_of(kind).as_transformers(), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, want)
        merged = loaded.merge_and_unload()
        assert isinstance(merged, InfiniForCausalLM)
        torch.testing.assert_close(merged(ids).logits, want, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(want, untouched)


@kinds
def test_lora_has_the_same_gradients_both_ways(kind: Kind) -> None:
    found = []
    for streamed in (False, True):
        torch.manual_seed(2)
        wrapped = lora(tiny_model(memory=kind, **WINDOWS["hard"]))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
        ids = some_ids(LENGTH, rows=2)
        if streamed:
            Streamed(wrapped).backward(ids, ids)
        else:
            wrapped(input_ids=ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in wrapped.named_parameters() if p.grad is not None})
    assert any(".memory." in name for name in found[0])
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)
