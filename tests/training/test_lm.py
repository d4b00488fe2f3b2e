"""``train lm``: what it learns, measures and logs; stopped runs that go on bit for bit; several processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infinichat.cli.main import main
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.errors import UsageError
from infinichat.model.loading import load_model
from infinichat.training.lm import LmOptions, check_options, train_lm
from infinichat.training.lm_model import (
    TRAINED_RATE,
    Learning,
    Learns,
    Start,
    begin,
    byte_tokenizer,
    groups_of,
    is_gate,
    learners,
)
from infinichat.training.lm_run import Processes, RunOptions
from infinichat.training.streamed import Streamed
from infinichat.training.texts import Texts

pytest.importorskip("accelerate", reason="train lm needs accelerate: pip install 'infinichat[train]'")

CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
    "window": 16,
    "segment": 16,
    "sinks": 0,
    "memory": "delta",
    "memory_layers": [0, 1],
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and no second start with another allocator."""
    torch.set_num_threads(1)
    monkeypatch.setenv("INFINICHAT_ALLOCATOR", "set")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONFIG))
    return file


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.jsonl"
    words = ("the cat sat on the mat", "a dog ran to the door", "it rained on the old town")
    rows = [{"text": f"{words[n % 3]}, {n} times. " * 3} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def options(config: Path, text: Path, tmp_path: Path) -> LmOptions:
    return LmOptions(
        start=Start(config=config, tokenizer="bytes"),
        texts=Texts(text, held_out=10),
        learning=Learning(rate=3e-3, decay=0.1),
        run=RunOptions(tmp_path / "run", 0, log_every=1, check_every=4, save_every=2),
        block=48,
        rows=2,
        most_steps=8,
        check_blocks=4,
    )


def train(options: LmOptions, **more: Any) -> Path:
    return train_lm(options, processes=Processes(cpu=True), **more)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "lm.jsonl").read_text().splitlines()]


def test_it_learns_and_writes_a_model_that_every_command_takes(options: LmOptions) -> None:
    said: list[str] = []
    faster = replace(options, most_steps=24, learning=replace(options.learning, rate=1e-2))
    folder = train(faster, say=said.append)
    lines = lines_of(options.run.out)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 24
    assert losses[-1] < 0.75 * losses[0]
    checks = [line["check"] for line in lines if "check" in line]
    assert checks[-1]["loss"] < checks[0]["loss"]
    assert 0 < checks[-1]["accuracy"] < 1
    loaded = load_model(folder)
    assert loaded.trained
    assert loaded.tokenizer.encode("cat é") == ByteTokenizer().encode("cat é")
    # The last check, from the written model: over every token of every segment.
    from infinichat.training.blocks import Share, validation_batches

    batches = validation_batches(options.texts, loaded.tokenizer, size=48, rows=2, most=4, share=Share())
    found = [Streamed(loaded.model).evaluate(batch.ids, batch.labels)[0] for batch in batches]
    tokens = sum(each.tokens for each in found)
    assert tokens == sum(batch.ids.numel() - len(batch.ids) for batch in batches)
    assert checks[-1]["loss"] == pytest.approx(sum(each.loss for each in found) / tokens, rel=1e-4)
    assert said[0].startswith("tiny: ")
    record = json.loads((folder / "run.json").read_text())
    assert record["arguments"]["texts"]["train"] == "text.jsonl"
    assert record["held_out"] == checks[-1]


@pytest.mark.parametrize("truncate", [None, 1])
def test_both_types_learn_the_same_with_full_gradients(options: LmOptions, truncate: int | None) -> None:
    weights = []
    for way, back in (("I", None), ("II", truncate)):
        run = replace(options.run, out=options.run.out / way, way=way, truncate=back)  # type: ignore[arg-type]
        weights.append(load_file(train(replace(options, most_steps=3, run=run)) / "model.safetensors"))
    close = all(torch.allclose(weights[1][name], tensor, atol=1e-5) for name, tensor in weights[0].items())
    assert close is (truncate is None)


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def on_step(done: int) -> None:
        if done == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("learns", ["all", "lora"])
def test_a_stopped_run_goes_on_bit_for_bit(options: LmOptions, learns: Any) -> None:
    if learns == "lora":
        pytest.importorskip("peft", reason="LoRA needs peft: pip install 'infinichat[train]'")
    options = replace(options, learning=replace(options.learning, learns=learns, lora_dropout=0.2))
    whole = train(options)
    other = replace(options, run=replace(options.run, out=options.run.out.with_name("other")))
    with pytest.raises(Stop):
        train(other, on_step=stop_at(5))
    with pytest.raises(UsageError, match="holds a run that was stopped at step_4. Go on with it"):
        train(other)
    resumed = train(replace(other, run=replace(other.run, resume="last")))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    logs = [[{**line, "seconds": 0} for line in lines_of(folder.parent)] for folder in (resumed, whole)]
    assert logs[0] == logs[1]
    assert sorted(path.name for path in other.run.out.glob("step_*")) == ["step_6", "step_8"]
    with pytest.raises(UsageError, match="was trained with rate 0.003, and now it is 0.5"):
        train(
            replace(
                other, run=replace(other.run, resume="last"), learning=replace(options.learning, rate=0.5)
            )
        )
    (other.run.out / "step_8" / "state.safetensors").write_bytes(b"cut off")
    with pytest.raises(UsageError, match="step_8 holds no state to go on from"):
        train(replace(other, run=replace(other.run, resume="last")))


def test_epochs_count_and_end_with_a_state(options: LmOptions) -> None:
    few = replace(options, most_steps=None, epochs=2, rows=8, accumulation=2, block=64)
    few = replace(few, run=replace(options.run, save_every="epoch", check_every=None))
    train(few)
    steps = max(line["step"] for line in lines_of(options.run.out))
    assert steps % 2 == 0
    names = sorted(path.name for path in options.run.out.glob("step_*"))
    assert names == sorted([f"step_{steps // 2}", f"step_{steps}"])


def test_gates_have_a_rate_of_their_own_and_never_decay(options: LmOptions) -> None:
    for learns in ("all", "lora"):
        if learns == "lora":
            pytest.importorskip("peft", reason="LoRA needs peft: pip install 'infinichat[train]'")
        learning = replace(options.learning, learns=learns, gate_rate=0.05)  # type: ignore[arg-type]
        made = begin(options.start, learning)
        groups = groups_of(made.trained, learning)
        of = {parameter: group for group in groups for parameter in group["params"]}
        names = {n: p for n, p in made.trained.named_parameters() if p.requires_grad}
        assert {n for n, p in names.items() if of[p]["lr"] == 0.05} == {
            n for n in names if n.endswith("beta")
        }
        assert not [n for n, p in names.items() if ".memory." in n and of[p]["weight_decay"]]
        assert any(of[p]["weight_decay"] for p in names.values())


def test_a_memory_alone_can_learn(options: LmOptions) -> None:
    learning = replace(options.learning, learns="memory")
    before = begin(options.start, learning)
    assert [n for n, p in before.trained.named_parameters() if p.requires_grad] == [
        "model.layers.0.memory.beta",
        "model.layers.1.memory.beta",
    ]


@pytest.fixture
def trained_bank(options: LmOptions, config: Path) -> Path:
    """The checkpoint of a small bank that was new, and learned a little."""
    bank = {"memory": "bank", "memory_layers": [0], "memory_key_dim": 4, "memory_fade_dim": 4}
    config.write_text(json.dumps(CONFIG | bank | {"memory_slots": 8, "memory_rank": 2}))
    run = replace(options.run, out=options.run.out.with_name("bank"), save_every=None, check_every=None)
    return train(replace(options, learning=Learning(rate=1e-2), most_steps=3, run=run))


def rates(start: Start, learning: Learning) -> dict[str, float]:
    """What learns of the model, by the end of its name, and how fast."""
    made = begin(start, learning)
    groups = groups_of(made.trained, made.learning)
    of = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    return {
        name.replace("modules_to_save.default.", "").removeprefix("base_model.model."): of[parameter]
        for name, parameter in learners(made.trained).items()
    }


@pytest.mark.parametrize("learns", ["all", "memory", "lora"])
def test_a_trained_memory_has_a_rate_of_its_own_and_keeps_what_was_worked_out(
    options: LmOptions, trained_bank: Path, learns: Learns
) -> None:
    if learns == "lora":
        pytest.importorskip("peft", reason="LoRA needs peft: pip install 'infinichat[train]'")
    learning, memory = Learning(learns, rate=3e-3, gate_rate=0.05), "model.layers.0.memory."
    new, old = (rates(start, learning) for start in (options.start, Start(str(trained_bank))))
    below = {name for name in new if "lora_" in name and ".layers.0." in name}
    assert bool(below) == (learns == "lora")
    assert new.keys() - old.keys() == {memory + "say_out", *below}
    everywhere = rates(Start(str(trained_bank)), replace(learning, lora_layers="all"))
    assert new.keys() - everywhere.keys() == {memory + "say_out"}
    for name, rate in old.items():
        usual = 0.05 if is_gate(name) else 3e-3
        assert new[name] == usual
        assert rate == (TRAINED_RATE if name.startswith(memory) and not is_gate(name) else usual)
    assert any(name.startswith(memory) for name in old)
    slow = rates(Start(str(trained_bank)), replace(learning, rate=1e-6))
    assert slow[memory + "context"] == 1e-6, "asked to be slow, it is not made faster"
    given = replace(learning, memory_rate=2e-3)
    for start in (options.start, Start(str(trained_bank))):
        found = rates(start, given)
        assert {rate for name, rate in found.items() if name.startswith(memory)} == {2e-3, 0.05}
        assert all(rate == 3e-3 for name, rate in found.items() if not name.startswith(memory))


def test_lora_above_a_memory_needs_a_layer_there(options: LmOptions, trained_bank: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install 'infinichat[train]'")
    learning = Learning("lora", lora_layers="above")
    found = rates(options.start, learning)
    assert any("lora_" in name for name in found)
    assert not [name for name in found if "lora_" in name and ".layers.1." not in name]
    assert options.start.config is not None
    options.start.config.write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match=r"no layer above a memory. Next: --lora_layers all"):
        begin(options.start, learning)


def test_a_trained_memory_moves_in_small_steps(options: LmOptions, trained_bank: Path) -> None:
    """By default, through the whole run, stopped and taken up, and in what it writes."""
    said: list[str] = []
    run = replace(options.run, check_every=None, schedule="constant")
    again = replace(options, start=Start(str(trained_bank)), learning=Learning(rate=1e-2), run=run)
    again = replace(again, most_steps=4)
    folder = train(again, say=said.append)
    assert "its memory, which is trained already, at 3e-05, 4 steps" in said[0]
    before, after = (load_file(path / "model.safetensors") for path in (trained_bank, folder))
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    memory = {name: far for name, far in moved.items() if ".memory." in name and not is_gate(name)}
    assert moved["model.layers.0.memory.say_out"] == 0
    assert 0 < max(memory.values()) < 4.1 * TRAINED_RATE
    assert moved["model.layers.1.self_attn.v_proj.weight"] > 1e-3
    record = json.loads((folder / "run.json").read_text())
    assert record["arguments"]["learning"]["memory_rate"] == TRAINED_RATE
    other = replace(again, run=replace(run, out=run.out.with_name("other")))
    with pytest.raises(Stop):
        train(other, on_step=stop_at(3))
    resumed = replace(other, run=replace(other.run, resume="last"))
    faster = replace(resumed, learning=replace(again.learning, memory_rate=1e-3))
    with pytest.raises(UsageError, match="was trained with memory_rate 3e-05, and now it is 0.001"):
        train(faster)
    found = load_file(train(resumed) / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in after.items())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two_processes(command: list[str], shared: dict[str, str]) -> list[tuple[str, str]]:
    """What both wrote, after both have ended well."""
    children = [
        subprocess.Popen(
            command,
            env={**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for port in (free_port(),)
        for rank in range(2)
    ]
    outs = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], outs
    return outs


@pytest.mark.parametrize("memory", ["delta", "recall"])
def test_two_processes_give_what_one_with_the_whole_batch_gives(
    options: LmOptions, config: Path, text: Path, tmp_path: Path, memory: str
) -> None:
    """With "recall" also spread over the two by FSDP, stopped and taken up."""
    config.write_text(json.dumps(CONFIG | {"memory": memory, "memory_key_dim": 4}))
    alone = train(replace(options, rows=4, most_steps=3, run=replace(options.run, out=tmp_path / "one")))
    argv = [
        "train",
        "lm",
        "--config_name",
        str(config),
        "--tokenizer_name",
        "bytes",
        "--train_file",
        str(text),
    ]
    argv += ["--validation_split_percentage", "10", "--block_size", "48", "--max_train_steps", "3"]
    argv += ["--per_device_train_batch_size", "2", "--learning_rate", "3e-3", "--weight_decay", "0.1"]
    argv += ["--max_eval_blocks", "4", "--logging_steps", "1", "--output_dir", str(tmp_path / "two")]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
    shared["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "infinichat", *argv]
    command += ["--fsdp", "--checkpointing_steps", "2"] if memory == "recall" else []
    outs = in_two_processes(command, shared)
    assert str(tmp_path / "two" / "checkpoint") in outs[0][0]
    assert outs[1][0] == "", "one of them speaks"
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "two" / "checkpoint", alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    logs = [lines_of(folder) for folder in (tmp_path / "two", tmp_path / "one")]
    if memory == "recall":
        shutil.rmtree(tmp_path / "two" / "step_3")
        in_two_processes([*command, "--resume_from_checkpoint"], shared)
        again = load_file(tmp_path / "two" / "checkpoint" / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in ours.items())
    for mine, other in zip(*logs, strict=True):
        figures = (mine.get("check", mine), other.get("check", other))
        assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-4)
        assert figures[0]["accuracy"] == pytest.approx(figures[1]["accuracy"], abs=1e-6)


def test_the_command_says_what_is_missing(
    options: LmOptions, config: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(*argv: str) -> str:
        assert main(["train", "lm", "--output_dir", str(tmp_path / "x"), *argv]) == 2
        return capsys.readouterr().err

    new = ("--config_name", str(config))
    assert "there is no text to train on" in failed(*new)
    given = ("--train_file", str(text))
    assert "Name one: --tokenizer_name FOLDER, or bytes" in failed(*new, *given)
    assert "--truncate_segments goes with --type II" in failed(
        *new, *given, "--type", "I", "--truncate_segments", "2"
    )
    assert "--config_name makes a new model, and --model names one" in failed(*new, *given, "--model", "x")
    with pytest.raises(UsageError, match="a block needs 2 tokens"):
        check_options(replace(options, block=1))


def test_missing_packages_are_named(options: LmOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"LoRA needs peft. Next: pip install 'infinichat\[train\]'"):
        begin(options.start, replace(options.learning, learns="lora"))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"needs accelerate. Next: pip install 'infinichat\[train\]'"):
        Processes()


def test_bytes_as_a_tokenizer_file_are_the_byte_tokenizer_s() -> None:
    ours, theirs = byte_tokenizer(), ByteTokenizer()
    text = "Ünïcödé \n\t <|im_end|> 日本 \x00\x7f"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(theirs.encode(text)) == text
    assert ours.vocab_size == theirs.vocab_size
    assert ours.control_id("<|im_end|>") == theirs.control_id("<|im_end|>")
