"""``train passkey``: rows of exactly so many tokens, keys that no measurement asks for, exact resume, and an
``eval passkey`` that takes what it writes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infinichat.cli.main import main
from infinichat.corpus.passkeys import OPENING, QUESTION, REPEATED, SENTENCE, draw_key, for_training
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.errors import UsageError
from infinichat.evals import passkey as measured
from infinichat.training.blocks import Share
from infinichat.training.lm_model import Learning, Start
from infinichat.training.lm_run import Processes, RunOptions
from infinichat.training.passkey import PasskeyOptions, PasskeySource, held_out, passkey_row, train_passkey

pytest.importorskip("peft", reason="train passkey needs peft: pip install 'infinichat[train]'")

BYTES = ByteTokenizer()
TOKENS = 512
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.1,
    "window": 128,
    "segment": 128,
    "sinks": 0,
    "memory": "delta",
    "memory_layers": [0, 1],
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("INFINICHAT_ALLOCATOR", "set")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(CONFIG))
    return file


@pytest.fixture
def options(config: Path, tmp_path: Path) -> PasskeyOptions:
    return PasskeyOptions(
        start=Start(config=config, tokenizer="bytes"),
        learning=Learning(learns="lora", rate=1e-2, lora_rank=4, lora_dropout=0.1),
        run=RunOptions(tmp_path / "run", 4, log_every=1, save_every=2, schedule="constant"),
        tokens=TOKENS,
        check_rows=2,
    )


def train(options: PasskeyOptions, **more: Any) -> Path:
    return train_passkey(options, processes=Processes(cpu=True), **more)


def test_training_keys_and_measured_keys_are_disjoint() -> None:
    rng = random.Random(1)
    training = {draw_key(rng, training=True) for _ in range(3000)}
    held = {draw_key(rng) for _ in range(3000)}
    assert not training & held
    assert all(len(key) == 5 and key[0] != "0" and key.isdigit() for key in training | held)
    share = sum(for_training(str(key)) for key in range(10_000, 100_000)) / 90_000
    assert 0.09 < share < 0.12
    for digit in "0123456789":
        assert any(key.endswith(digit) for key in training), "nothing about a digit tells them apart"


def test_what_eval_passkey_asks_for_is_never_trained_on() -> None:
    for script in (measured.plain_script, measured.chat_script):
        keys = {script(random.Random(seed)).asked[0].expected for seed in range(300)}
        assert len(keys) > 250
        assert not [key for key in keys if for_training(key)]


@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0, None])
def test_a_row_has_exactly_so_many_tokens_and_only_its_answer_is_learned(depth: float | None) -> None:
    ids, labels = passkey_row(BYTES, random.Random(3), 900, training=True, depth=depth)
    assert len(ids) == len(labels) == 900
    text = BYTES.decode(ids)
    answer = BYTES.decode([label for label in labels if label != -100])
    key = answer.strip(" .")
    assert for_training(key)
    assert text.startswith(measured.OPENING)
    assert text.endswith(f"{measured.QUESTION}{answer}")
    assert text.count(key) == 3
    at = text.index(f"The pass key is {key}") / len(text)
    if depth is not None:
        assert at == pytest.approx(0.18 + 0.62 * depth, abs=0.1)
    with pytest.raises(UsageError, match="a row of 100 tokens is .* too short"):
        passkey_row(BYTES, random.Random(3), 100, training=True)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0, None])
def test_key_and_question_stand_between_whole_lines(depth: float | None) -> None:
    begun = set()
    for tokens in range(900, 900 + len(REPEATED)):
        row = BYTES.decode(passkey_row(BYTES, random.Random(tokens), tokens, training=True, depth=depth)[0])
        key = row[-6:-1]
        before, after = row.split(f" {SENTENCE.format(key=key)}")
        assert after.endswith(f"{QUESTION} {key}.")
        lines = after.removesuffix(f"{QUESTION} {key}.")
        assert lines == REPEATED * (len(lines) // len(REPEATED))
        filler = before.removeprefix(OPENING)
        count, rest = divmod(len(filler), len(REPEATED))
        assert filler == REPEATED[len(REPEATED) - rest :] + REPEATED * count
        begun.add(rest)
    assert begun == set(range(len(REPEATED))), "every length is reached"


def test_every_step_and_process_has_other_keys(options: PasskeyOptions) -> None:
    many = replace(options, rows=2, accumulation=2, least_tokens=480)
    found = []
    for share in (Share(0, 2), Share(1, 2)):
        steps = PasskeySource(BYTES, many, share).steps(3)
        found += [batch for _ in range(3) for batch in next(steps).batches]
    answers = [row[-6:-1] for batch in found for row in batch.labels.tolist()]
    assert len({tuple(answer) for answer in answers}) == len(answers) == 24
    lengths = {batch.ids.shape[1] for batch in found}
    assert len(lengths) > 1
    assert all(480 <= length <= TOKENS for length in lengths)
    later = next(PasskeySource(BYTES, many, Share(0, 2)).steps(4)).batches[0]
    assert torch.equal(later.ids, found[2].ids), "step 4 is the same wherever one begins"


def test_checked_rows_have_measured_keys_at_all_depths(options: PasskeyOptions) -> None:
    batches = held_out(BYTES, replace(options, check_rows=5), Share())
    texts = [BYTES.decode(row) for batch in batches for row in batch.ids.tolist()]
    places = [text.index("The pass key is") for text in texts]
    assert places == sorted(places)
    assert not [text for text in texts if for_training(text[-6:-1])]


def test_it_learns_resumes_exactly_and_is_measured(
    options: PasskeyOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(options)

    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        if done == 3:
            raise Stop

    other = replace(options, run=replace(options.run, out=options.run.out.with_name("other")))
    with pytest.raises(Stop):
        train(other, on_step=stop)
    resumed = train(replace(other, run=replace(other.run, resume="last")))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    lines = [json.loads(line) for line in (options.run.out / "passkey.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    argv = ["eval", "passkey", "--model", str(whole), "--lengths", "300,700", "--depths", "0.5"]
    assert main([*argv, "--samples", "1", "--memory", "on", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    plain = [cell for cell in out["cells"] if cell["form"] == "plain"]
    assert [(cell["length"], cell["n"]) for cell in plain] == [(300, 1), (700, 1)]


def test_the_command_trains_with_lora_and_the_memory(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "passkey", "--config_name", str(config), "--tokenizer_name", "bytes", "--cpu"]
    argv += ["--num_tokens", "400", "--max_train_steps", "2", "--eval_rows", "1", "--type", "II"]
    assert main([*argv, "--output_dir", str(tmp_path / "out"), "--logging_steps", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(tmp_path / "out" / "checkpoint")
    assert out[1] == str(tmp_path / "out" / "passkey.png")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["arguments"]["learning"]["learns"] == "lora"
    assert record["arguments"]["tokens"] == 400
