"""``train paper``: six models of one size that see the past in six ways, trained on the same blocks, stopped
and taken up again, measured along whole books and on the passkey task."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infinichat.cli.main import main
from infinichat.errors import UsageError
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.blocks import Share
from infinichat.training.lm_model import Learning, byte_tokenizer, groups_of
from infinichat.training.lm_run import Processes, RunOptions
from infinichat.training.paper import one_model
from infinichat.training.paper.books import ShuffledBlocks, tokenizer_for, training_ids
from infinichat.training.paper.measure import books_by_position, bucket_ends, passkeys, perplexity
from infinichat.training.paper.options import PaperOptions, Tuning
from infinichat.training.paper.recipe import compare
from infinichat.training.paper.report import tables
from infinichat.training.paper.variants import (
    KINDS,
    Kind,
    SegmentBank,
    Sizes,
    cached_numbers,
    count,
    make,
    state_numbers,
)
from infinichat.training.streamed import Streamed
from infinichat.training.texts import Texts

pytest.importorskip("accelerate", reason="train paper needs accelerate: pip install 'infinichat[train]'")

SIZES = Sizes(layers=2, hidden=16, heads=2, inner=128, segment=16, full=64, slots=24, key=4, fade=4)
WORDS = ("Anna walked to the old mill.", "It was 1812.", "The grass is green there.", "He said no, and left.")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("INFINICHAT_ALLOCATOR", "set")


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    rng = np.random.default_rng(0)

    def book(sentences: int) -> str:
        return " ".join(WORDS[at] for at in rng.integers(0, len(WORDS), sentences)) + "\n"

    folder = tmp_path / "books"
    for part, lengths in (("train", (120, 90, 150)), ("validation", (60, 110))):
        (folder / part).mkdir(parents=True)
        for number, sentences in enumerate(lengths):
            (folder / part / f"{number}.txt").write_text(book(sentences))
    return Texts(folder)


@pytest.fixture
def options(texts: Texts, tmp_path: Path) -> PaperOptions:
    return PaperOptions(
        texts,
        RunOptions(tmp_path / "run", 4, truncate=4, save_every=2, keep=1, log_every=1, check_every=2),
        sizes=SIZES,
        learning=Learning(rate=1e-2),
        tuning=Tuning(steps=2, rows=1, least=288, tokens=320, lengths=(288, 320), samples=1),
        vocabulary=300,
        block=64,
        rows=2,
        books=2,
        check_rows=2,
    )


def model_of(kind: Kind, sizes: Sizes = SIZES) -> InfiniForCausalLM:
    torch.manual_seed(0)
    model = make(kind, sizes, 50)
    with torch.no_grad():
        # Differences of an untrained model's outputs are too small to be told from none.
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


# ---- the models


def test_all_models_have_as_many_parameters() -> None:
    found = {kind: count(make(kind, SIZES, 300)) for kind in KINDS}
    plain, channel = found["local"][0], 3 * SIZES.hidden * SIZES.layers
    assert all(plain - channel < whole <= plain for whole, _ in found.values())
    assert found["delta"][1] == found["linear"][1] == SIZES.layers * SIZES.heads
    assert found["bank"][1] > 1000
    assert [found[kind][1] for kind in ("local", "xl", "full")] == [0, 0, 0]
    with pytest.raises(UsageError, match="more than all MLPs"):
        make("bank", replace(SIZES, inner=8), 300)


def test_what_opens_a_memory_has_a_rate_of_its_own() -> None:
    model, learning = make("bank", SIZES, 300), Learning(rate=0.5, gate_rate=0.25)
    fast = {id(p) for group in groups_of(model, learning) if group["lr"] == 0.25 for p in group["params"]}
    named = {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if id(p) in fast}
    assert named == {"alpha", "beta", "matrix_gain"}


def test_what_a_stream_keeps_is_counted() -> None:
    kept = {kind: state_numbers(make(kind, SIZES, 300), kind) for kind in KINDS}
    config = make("xl", SIZES, 300).config
    assert kept["local"] == 0
    assert kept["xl"] == cached_numbers(config, SIZES.segment) == 2 * 16 * 16 * 2
    assert kept["full"] == cached_numbers(config, SIZES.full)
    # M, z and how many tokens were written, in each layer.
    assert kept["linear"] == kept["delta"] == 2 * (2 * (8 * 8 + 8) + 1)
    assert kept["bank"] > SIZES.slots * (2 * SIZES.key + SIZES.fade + SIZES.hidden)


@pytest.mark.parametrize(
    ("kind", "segments_seen"),
    [("local", 0), ("xl", 1), ("full", 3), ("linear", 3), ("delta", 3), ("bank", 3)],
)
def test_each_sees_as_far_back_as_it_should(kind: Kind, segments_seen: int) -> None:
    """With one layer: whether the fourth segment's last token depends on a segment before it."""
    model = model_of(kind, replace(SIZES, layers=1, inner=256)).eval()
    for layer in model.config.memory_layers:
        if kind == "bank":
            torch.nn.init.constant_(model.model.layers[layer].memory.alpha, 1.0)
    ids = torch.randint(0, 50, (1, 64))
    reached = []
    with torch.no_grad():
        plain = model(ids).logits[0, -1]
        for back in (1, 2, 3):
            other = ids.clone()
            other[0, 48 - 16 * back : 64 - 16 * back] = (other[0, 48 - 16 * back : 64 - 16 * back] + 7) % 50
            reached.append(not torch.allclose(model(other).logits[0, -1], plain, atol=1e-6))
    assert reached == [back <= segments_seen for back in (1, 2, 3)]


def test_the_bank_is_read_before_the_segment_is_written() -> None:
    model = model_of("bank", replace(SIZES, layers=1, inner=256)).eval()
    memory = model.model.layers[0].memory
    assert isinstance(memory, SegmentBank)
    torch.nn.init.constant_(memory.alpha, 1.0)
    torch.manual_seed(1)
    ids = torch.randint(0, 50, (2, 32))
    states = {}
    for name in ("segment", "token"):
        if name == "token":
            memory._cuts = super(SegmentBank, memory)._cuts  # type: ignore[method-assign]
        cache = model.model.new_cache(2)
        with torch.no_grad():
            states[name] = [model(ids[:, :16], past_key_values=cache).logits], cache.to_tensors()
    ours, theirs = states["segment"][1], states["token"][1]
    # The same is written, ...
    written = [name for name in ours if "bank" in name or name.endswith(".M")]
    assert len(written) > 8
    for name in written:
        if not name.endswith("route"):
            torch.testing.assert_close(ours[name], theirs[name])
    assert int(ours["layers.0.bank_order"].max()) == 15
    # ... but in a chat tokens of the same segment are read already.
    assert not torch.allclose(states["segment"][0][0], states["token"][0][0], atol=1e-5)


# ---- the books


def test_every_block_comes_once_in_an_order_of_the_seed() -> None:
    ids = np.arange(101, dtype=np.uint16)
    source = ShuffledBlocks(ids, 10, 2, seed=3, share=Share())
    steps = source.steps(0)
    first, second = [next(steps) for _ in range(5)], [next(steps) for _ in range(5)]
    for epoch in (first, second):
        rows = torch.cat([step.batches[0].ids for step in epoch])
        assert sorted(rows[:, 0].tolist()) == list(range(0, 100, 10))
        assert all(row.tolist() == list(range(row[0], row[0] + 10)) for row in rows)
    assert [step.ends for step in first] == [False] * 4 + [True]
    assert not all(
        torch.equal(a.batches[0].ids, b.batches[0].ids) for a, b in zip(first, second, strict=True)
    )
    later = source.steps(7)
    assert torch.equal(next(later).batches[0].ids, second[2].batches[0].ids)
    halves = [next(ShuffledBlocks(ids, 10, 1, 3, Share(index, 2)).steps(1)) for index in (0, 1)]
    assert torch.equal(torch.cat([half.batches[0].ids for half in halves]), first[1].batches[0].ids)
    with pytest.raises(UsageError, match="101 tokens"):
        next(ShuffledBlocks(ids, 60, 2, 0, Share()).steps(0))


def test_the_learned_tokenizer_has_single_digits_and_is_kept(texts: Texts, tmp_path: Path) -> None:
    made = tokenizer_for(texts, tmp_path, named=None, vocabulary=300)
    assert made.vocab_size == 300
    assert [made.decode([token]) for token in made.encode("1812")] == ["1", "8", "1", "2"]
    assert made.decode(made.encode("Änna said 7 €.")) == "Änna said 7 €."
    again = tokenizer_for(texts, tmp_path, named=None, vocabulary=999)
    assert again.fingerprint == made.fingerprint
    ids = training_ids(texts, made, tmp_path)
    whole = (texts.train / "train" / "0.txt").read_text()
    end = int(np.flatnonzero(ids == made.eos_id)[0])
    assert made.decode(ids[:end].tolist()) == whole


# ---- what is measured


@pytest.mark.parametrize("kind", ["xl", "delta", "bank", "full"])
def test_perplexity_is_over_whole_books_with_the_state_carried_on(kind: Kind) -> None:
    model = model_of(kind)
    books = [torch.randint(0, 50, (length,)) for length in (140, 300, 70)]
    found = books_by_position(model, books, first=16, step=64)
    assert [bucket["upto"] for bucket in found] == [16, 32, 64, 128, 256]
    assert [bucket["tokens"] for bucket in found] == [48, 48, 96, 128, 128]
    model.eval()
    wanted = 0.0
    for book in books:
        ids = book[None, : (len(book) - 1) // 64 * 64 + 1]
        with torch.no_grad():
            wanted += Streamed(model).evaluate(ids, ids)[0].loss
    assert math.log(perplexity(found)) == pytest.approx(wanted / 448, rel=1e-4)
    assert bucket_ends(256, 16)[-1] == 256


class Oracle:
    """Says the next token of rows that it knows; ``wrong`` places from the end of a row excepted."""

    def __init__(self, wrong: int) -> None:
        self.config, self.model, self.training = SimpleNamespace(segment=32), self, True
        self.rows: Tensor = torch.zeros(0)
        self.wrong, self.at = wrong, 0

    def train(self, mode: bool) -> None:
        self.training = mode

    def new_cache(self, batch: int) -> Any:
        self.at = 0
        return SimpleNamespace(device=torch.device("cpu"))

    def evict(self, cache: Any) -> None:
        pass

    def __call__(self, ids: Tensor, past_key_values: Any, logits_to_keep: int) -> Any:
        self.at += ids.shape[1]
        said = torch.cat((ids[:, 1:], ids[:, :1]), dim=1)
        # The last token's successor is in the next piece, so it is taken from the text itself.
        said[:, -1] = self.rows[: len(ids), self.at] if self.at < self.rows.shape[1] else 0
        place = self.at - self.rows.shape[1] + ids.shape[1] - self.wrong
        if 0 <= place < ids.shape[1]:
            said[:, place] += 1
        return SimpleNamespace(logits=torch.nn.functional.one_hot(said, 300).float()[:, -logits_to_keep:])


@pytest.mark.parametrize(
    ("wrong", "tokens"), [(0, 6), (1, 6), (2, 6), (3, 5), (8, 5), (9, 6)], ids="wrong {}".format
)
def test_a_passkey_is_right_when_all_its_digits_are(
    wrong: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of " 12345." the blank and the digits count: predicted 8 to 3 places before the end."""
    oracle = Oracle(wrong)
    real = torch.tensor

    def note(rows: Any, **more: Any) -> Tensor:
        made = real(rows, **more)
        if made.dim() == 2 and int(made.min()) >= 0:
            oracle.rows = made
        return made

    monkeypatch.setattr("infinichat.training.paper.measure.torch.tensor", note)
    cells = passkeys(oracle, byte_tokenizer(), lengths=[400], samples=2, seed=0)  # type: ignore[arg-type]
    assert [cell["depth"] for cell in cells] == ["start", "middle", "end"]
    for cell in cells:
        assert cell["tokens"] == pytest.approx(tokens / 6)
        assert cell["exact"] == (1 if tokens == 6 else 0)


# ---- from start to end


def run(options: PaperOptions, **more: Any) -> list[dict[str, Any]]:
    return compare(options, processes=Processes(cpu=True), **more)


def test_the_comparison_is_made_and_tabled(options: PaperOptions) -> None:
    results = run(options)
    assert [each["kind"] for each in results] == list(KINDS)
    assert json.loads((options.run.out / "results.json").read_text()) == results
    for each in results:
        assert each["tokens"] == 4 * 2 * 64
        assert each["tokens_per_second"] > 0
        assert each["held_out_tokens"] == results[0]["held_out_tokens"] > 1000
        assert each["perplexity"] < 300
        assert [cell["length"] for cell in each["fine_tuned"]] == [288] * 3 + [320] * 3
    local, xl, *_ = results
    assert local["compression"] is None
    assert xl["compression"] == pytest.approx(results[2]["compression"] * 4)
    found = tables(results)
    assert [row[0] for row in found[0].rows][:3] == [
        "local window (16)",
        "Transformer-XL caching",
        "full attention (64)",
    ]
    assert found[0].rows[0][5] == f"{local['perplexity']:.2f}"
    assert len(found[2].rows) == 12
    assert found[2].rows[0][1].count("/") == 2
    assert found[1].markdown().count("\n") == 9
    loaded = load_file(options.run.out / "delta" / "checkpoint" / "model.safetensors")
    assert "model.layers.1.memory.beta" in loaded


def test_the_cached_segment_has_no_gradient(options: PaperOptions) -> None:
    """Whatever ``truncate`` says: of the others it decides what they learn."""
    weights: dict[tuple[Kind, int], dict[str, Tensor]] = {}
    kinds: tuple[Kind, ...] = ("xl", "delta")
    for truncate in (1, 4):
        own = replace(options.run, out=options.run.out / str(truncate), truncate=truncate, steps=2)
        run(replace(options, run=own, kinds=kinds))
        for kind in kinds:
            weights[kind, truncate] = load_file(own.out / kind / "checkpoint" / "model.safetensors")
    for kind, same in (("xl", True), ("delta", False)):
        one, four = weights[kind, 1], weights[kind, 4]
        assert all(torch.equal(one[name], four[name]) for name in one) is same


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "stage", "steps", "tuning"), [("bank", "lm", 4, 1), ("delta", "passkey", 2, 4)]
)
def test_a_stopped_comparison_goes_on_bit_for_bit(
    options: PaperOptions, kind: Kind, stage: str, steps: int, tuning: int
) -> None:
    options = replace(
        options,
        kinds=(kind,),
        run=replace(options.run, steps=steps),
        tuning=replace(options.tuning, steps=tuning, lengths=(288,)),
    )
    run(options)
    other = replace(options, run=replace(options.run, out=options.run.out.with_name("other")))
    done: list[tuple[str, str, int]] = []

    def stop(kind: str, name: str, step: int) -> None:
        if name == stage and step == 3:
            raise Stop

    with pytest.raises(Stop):
        run(other, on_step=stop)
    run(other, on_step=lambda *place: done.append(place))
    assert done[0] == (kind, stage, 3)
    for part in ("checkpoint", "passkey/checkpoint"):
        ours, theirs = (
            load_file(each.run.out / kind / part / "model.safetensors") for each in (other, options)
        )
        assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    figures = [json.loads((o.run.out / kind / "figures.json").read_text()) for o in (other, options)]
    assert figures[0]["by_position"] == figures[1]["by_position"]
    assert figures[0]["fine_tuned"] == figures[1]["fine_tuned"]


def test_what_is_done_is_not_done_again(options: PaperOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(options, kinds=("local",))
    first = run(options)

    def never(*arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(one_model, "_run", never)
    assert run(options) == first
    asked = replace(options, tuning=replace(options.tuning, lengths=(300,)))
    assert [cell["length"] for cell in run(asked)[0]["zero_shot"]] == [300] * 3
    slower = replace(options, learning=replace(options.learning, rate=1e-3))
    with pytest.raises(UsageError, match="trained with other options"):
        run(slower)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 72}, "block_size 72"),
        ({"sizes": replace(SIZES, full=40)}, "full_length 40"),
        ({"tuning": Tuning(least=500, tokens=400)}, "passkey_min_tokens 500"),
        ({"tuning": Tuning(least=40)}, "too short"),
        ({"sizes": replace(SIZES, inner=8)}, "more than all MLPs"),
        ({"vocabulary": 300, "books": 1, "block": 1 << 14, "sizes": replace(SIZES, full=16)}, "no book"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    options: PaperOptions, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(replace(options, **change))


def test_the_command_prints_and_draws(
    options: PaperOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "command"
    argv = ["train", "paper", "--dataset_name", str(options.texts.train), "--output_dir", str(out), "--cpu"]
    sizes = "--layers 1 --hidden 16 --heads 2 --inner 320 --segment_length 16 --full_length 64 --bank_slots 8"
    steps = "--block_size 64 --max_train_steps 2 --num_warmup_steps 0 --eval_rows 1 --vocab_size 300"
    task = "--passkey_steps 1 --passkey_rows 1 --passkey_min_tokens 288 --passkey_tokens 288"
    argv += f"{sizes} {steps} {task} --passkey_lengths 288 --passkey_samples 1 --variants xl,bank".split()
    assert main([*argv, "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| Transformer-XL caching | " in printed
    assert "| bank (ours), fine-tuned | " in printed
    assert (out / "paper.png").stat().st_size > 10_000
    assert json.loads((out / "run.json").read_text())["arguments"]["sizes"]["hidden"] == 16
    assert main([*argv, "--json"]) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)] == ["xl", "bank"]
    assert main([*argv, "--variants", "xl,perceiver"]) == 2
    assert "perceiver" in capsys.readouterr().err
