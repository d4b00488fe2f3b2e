"""Training a tiny bank memory on made-up conversations: it learns, and resumes exactly."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.attention.bank import NEARLY, BankState, bank_read, bank_write, headwise_unit, unit
from infinichat.corpus.conversations import (
    ALL_OF_IT,
    GENERAL,
    IGNORE,
    KEPT,
    OTHER,
    SAID_BACK,
    VALUE,
    StreamMaker,
)
from infinichat.corpus.facts import FactMaker
from infinichat.corpus.filler import Filler
from infinichat.corpus.sentences import answer_start, echo_of, spoken_of
from infinichat.corpus.ways import KIND
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.errors import UsageError
from infinichat.model.adapters import Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.loading import LoadedModel
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.cache import (
    GROUPS,
    Shard,
    draw_mixed,
    draw_pages,
    draw_streams,
    prepare,
    read_shard,
    shard_files,
    write_shard,
)
from infinichat.training.checks import gate_on, recall_on
from infinichat.training.loop import Check, Plan, run_stage, seeded
from infinichat.training.opening import PREFIX, Opening
from infinichat.training.plain import decode, lower, offsets_of, past_of
from infinichat.training.plots import draw, series
from infinichat.training.pool import Episode, Pool
from infinichat.training.prepare import Options, give_topics
from infinichat.training.reading import follow, project, read, same_slot, seen_along, seen_at, slots_of, write
from infinichat.training.recall import RecallStage
from infinichat.training.rows import Row
from infinichat.training.stages import GateStage, KeysStage, MarksStage
from infinichat.training.strays import PIECE, Strays

from .test_lm import in_two_processes

LAYER = 1


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with two short dialogues and a book."""
    folder = tmp_path / "text"
    folder.mkdir()
    said = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}]
    (folder / "talk.jsonl").write_text((json.dumps({"messages": said}) + "\n") * 30)
    for name in ("one.txt", "two.txt", "three.txt"):
        (folder / name).write_text("The rain came down on the old town and nobody went out. " * 40)
    return folder


@pytest.fixture
def model() -> InfiniForCausalLM:
    return tiny()


def tiny() -> InfiniForCausalLM:
    """The same in every process."""
    torch.manual_seed(0)
    config = InfiniConfig(
        vocab_size=ByteTokenizer().vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        window=64,
        segment=32,
        memory="bank",
        memory_layers=[LAYER],
        memory_trained=True,
        memory_key_dim=8,
        memory_slots=64,
        memory_rank=2,
        memory_topics=2,
    )
    return InfiniForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def cached(text: Path, model: InfiniForCausalLM, tmp_path: Path) -> Shard:
    tokenizer, filler = offsets_of(ByteTokenizer()), Filler(text)
    folder = tmp_path / "cache"
    run = lower(model, LAYER)
    list(prepare(folder, "train", run, tokenizer, filler, shards=1, tokens=9000, seed=0))
    return read_shard(shard_files(folder, "train")[0])


def memory_of(model: InfiniForCausalLM) -> BankMemory:
    memory = model.model.layers[LAYER].memory
    assert isinstance(memory, BankMemory)
    return memory


def test_offsets_cover_the_text_and_control_tokens_are_themselves() -> None:
    tokenizer = ByteTokenizer()
    text = "<|im_start|>user\nÄpfel kosten 3 €.<|im_end|>\n"
    coded = offsets_of(tokenizer)(text)
    assert coded["input_ids"][0] == tokenizer.control_id("<|im_start|>")
    assert coded["offset_mapping"][0] == (0, len("<|im_start|>"))
    assert coded["offset_mapping"][-1][1] == len(text)


def test_value_labels_are_exactly_the_told_values(text: Path) -> None:
    tokenizer = ByteTokenizer()
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(tokenizer), random.Random(1))
    for _, stream in draw_streams(maker, 9000):
        for told in stream.told:
            ids = stream.ids[told.start : told.start + told.count]
            assert tokenizer.decode(ids).strip() == maker.facts[told.fact][told.version].value
        marked = sum(told.count for told in stream.told)
        assert sum(label == VALUE for label in stream.labels) == marked
        assert OTHER in stream.labels


def test_plain_layers_equal_the_model_with_an_empty_memory(model: InfiniForCausalLM) -> None:
    ids = torch.randint(0, 200, (2, 20))
    h = decode(model, model.model.embed_tokens(ids), first=0, last=3)
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(model.lm_head(model.model.norm(h)), expected, atol=1e-4, rtol=1e-4)


def test_plain_layers_equal_the_model_with_open_adapters(model: InfiniForCausalLM) -> None:
    memory, ids = memory_of(model), torch.randint(0, 200, (1, 20))
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory.gate_bias.data.fill_(9.0)
    found: list[tuple[Tensor, Carried]] = []
    added, seen = memory.added, []

    def kept(*arguments: Tensor) -> tuple[Tensor, Carried]:
        found.append(added(*arguments))
        return found[-1]

    memory.added = kept  # type: ignore[method-assign]
    model.model.layers[LAYER].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        expected = model(ids).logits
        # The first two tokens find nothing, so nothing was added there.
        parts = [[got, carried.opened, carried.values, carried.wish] for got, carried in found]
        parts = 2 * [[torch.zeros_like(part[:, :1]) for part in parts[0]]] + parts
        columns = [torch.cat(column, dim=1) for column in zip(*parts, strict=True)]
        carried = Carried(memory.adapters, *columns[1:], memory.say_final, memory.say)
        h = decode(model, seen[0], first=LAYER, last=3, added=columns[0], carried=carried)
        ours = model.lm_head(carried.spoken(model.model.norm(h)))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_preparing_again_writes_only_what_is_missing(
    text: Path, model: InfiniForCausalLM, tmp_path: Path
) -> None:
    arguments = ("train", lower(model, LAYER), offsets_of(ByteTokenizer()), Filler(text))
    first = list(prepare(tmp_path / "c", *arguments, shards=2, tokens=3000, seed=0))
    before = read_shard(first[1])
    first[1].unlink()
    again = list(prepare(tmp_path / "c", *arguments, shards=2, tokens=3000, seed=0))
    assert again == [first[1]]
    after = read_shard(again[0])
    assert torch.equal(before.hidden, after.hidden)
    assert before.told == after.told


def test_each_stage_lowers_its_loss(model: InfiniForCausalLM, cached: Shard, tmp_path: Path) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    memory.alpha.data.fill_(1.0)
    memory.say.data.fill_(0.15)
    assert memory.adapters is not None
    stages = (
        KeysStage(memory, pool),
        MarksStage(memory, pool),
        GateStage(memory, pool),
        RecallStage(memory, pool, model, layer=LAYER, streams=2, longest=700),
    )
    for stage in stages:
        losses: list[float] = []
        run_stage(
            stage,
            tmp_path / "run",
            Plan(30),
            on_step=lambda _, n, kept=losses: kept.append(n["loss"]),
        )
        assert sum(losses[-8:]) < sum(losses[:8]), stage.name
    assert bool(memory.adapters.q_up.detach().any())


def test_adapters_learn_to_open_where_answers_begin_and_nowhere_else(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    opening = Opening(memory, pool, pool.asked)
    begins = torch.cat([opening.before(a) for a in opening.asked])
    # At most so many tokens, all of them before the value: the one that it is said after, where it is found,
    # is not among them.
    assert len(begins) <= PREFIX * len(opening.asked)
    assert not set(begins.tolist()) & {a.value - 1 for a in opening.asked if a.count and a.value > a.answer}
    # Of replies that say nothing back, the beginning.
    whole = [a for a in pool.asked if a.version == SAID_BACK and not a.count]
    assert whole
    assert {a.answer - 1 for a in whole} <= set(begins.tolist())
    shut = {number for number, (_, _, kind) in enumerate(pool.streams) if kind in ("talk", "book", "general")}
    assert {int(pool.stream[place]) for place in opening.shut.tolist()} == shut
    learned = [memory.adapt_in, memory.adapt_in_bias, memory.carry, memory.carry_bias]
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=0.02)
    for step in range(60):
        optimizer.zero_grad()
        opening.loss(seeded(0, "opening", step)).backward()
        optimizer.step()
    finds = torch.tensor([a.value - 1 for a in opening.asked if a.count])
    # Something is found at every other token of a book.
    for found, opened in ((0, begins), (1, finds)):
        for places, share in ((opened, 1), (opening.shut, 0)):
            logits = opening.logits(places, torch.full((len(places),), float(found)))
            assert (logits > 0).float().mean().item() == pytest.approx(share, abs=0.05)


def test_what_a_page_asks_for_opens_the_adapters_right_before_it(
    model: InfiniForCausalLM, text: Path, tmp_path: Path
) -> None:
    rng = random.Random(5)
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(ByteTokenizer()), rng)
    write_shard(tmp_path / "page.safetensors", draw_pages(maker, 6000), maker.facts, lower(model, LAYER))
    pool = Pool([read_shard(tmp_path / "page.safetensors")], model, LAYER)
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER)
    assert {a.answer for a in stage.opening.asked} == {a.answer for a in pool.known}
    assert [stage.opening.before(a).tolist() for a in stage.opening.asked] == [
        [a.value - 1] for a in stage.opening.asked
    ]


def test_general_answers_in_young_conversations_keep_the_adapters_shut(
    model: InfiniForCausalLM, text: Path, tmp_path: Path
) -> None:
    general = [("What is gravity?", "A force that pulls.")]
    maker = StreamMaker(
        FactMaker("train"), Filler(text), offsets_of(ByteTokenizer()), random.Random(5), general=general
    )
    file = tmp_path / "mixed.safetensors"
    write_shard(file, draw_mixed(maker, 3000), maker.facts, lower(model, LAYER))
    pool = Pool([read_shard(file)], model, LAYER)
    opening = Opening(memory_of(model), pool, pool.asked)
    answers = [a for a in pool.asked if a.version == GENERAL]
    assert answers
    assert set(opening.shut.tolist()) == {at for a in answers for at in range(a.answer - 1, a.end - 1)}
    assert {a.version for a in opening.asked} >= {-1, SAID_BACK}


def test_many_questions_are_the_first_of_their_conversation(text: Path) -> None:
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(ByteTokenizer()), random.Random(1))
    asked = [len(stream.asked) for kind, stream in draw_streams(maker, 60_000) if kind == "ask"]
    assert asked.count(1) > len(asked) // 4
    assert max(asked) == max(GROUPS)


def test_how_old_a_fact_is_is_not_learned_from_made_up_pasts(model: InfiniForCausalLM, cached: Shard) -> None:
    assert "recency" not in KeysStage(memory_of(model), Pool([cached], model, LAYER)).rates


def test_a_stopped_run_goes_on_exactly(model: InfiniForCausalLM, cached: Shard, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def train(out: Path, stop: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        memory = BankMemory(model.config, LAYER)
        stage = KeysStage(memory, Pool([cached], model, LAYER))

        def halt(step: int, _: dict[str, float]) -> None:
            if step == stop:
                raise Stop

        run_stage(stage, out, Plan(8, save_every=4), on_step=halt)
        return {name: p.detach().clone() for name, p in memory.named_parameters()}

    whole = train(tmp_path / "a", None)
    with pytest.raises(Stop):
        train(tmp_path / "b", 6)
    resumed = train(tmp_path / "b", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in ("context", "beta", "null"))


def keys_of(model: InfiniForCausalLM, shard: Shard) -> KeysStage:
    """The same start in every process."""
    torch.manual_seed(5)
    memory = BankMemory(model.config, LAYER)
    return KeysStage(memory, Pool([shard], model, LAYER))


TWO = """
import sys, torch
from pathlib import Path
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.cache import read_shard
from infinichat.training.lm_run import Processes
from infinichat.training.loop import Plan, run_stage
from tests.training.test_training import keys_of, tiny

out, processes = Path(sys.argv[2]), Processes(cpu=True)
stage = keys_of(tiny(), read_shard(Path(sys.argv[1])))
run_stage(stage, out, Plan(3, log_every=1), processes=processes, report=lambda line: print(line))
torch.save({n: p.detach() for n, p in stage.parameters.items()}, out / f"{processes.share.index}.pt")
"""


def test_two_processes_share_the_work_of_a_stage(
    model: InfiniForCausalLM, cached: Shard, tmp_path: Path
) -> None:
    class Both:
        """One process that does the work of two."""

        name, steps = "keys", 0

        def __init__(self, stage: KeysStage) -> None:
            self.stage, self.parameters, self.rates = stage, stage.parameters, stage.rates

        def loss(self, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
            losses = [self.stage.loss(seeded(0, "keys", self.steps, process))[0] for process in range(2)]
            self.steps += 1
            return torch.stack(losses).mean(), {}

    alone = keys_of(model, cached)
    run_stage(Both(alone), tmp_path / "one", Plan(3))
    shard = shard_files(tmp_path / "cache", "train")[0]
    root = str(Path(__file__).resolve().parents[2])
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    outs = in_two_processes([sys.executable, "-c", TWO, str(shard), str(tmp_path / "two")], shared)
    assert "3/3" in outs[0][0]
    ours, theirs = (torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, parameter in alone.parameters.items():
        assert torch.equal(ours[name], theirs[name]), name
        torch.testing.assert_close(ours[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    logged = (tmp_path / "two" / "keys.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3], "one of them writes"


def test_an_episode_never_holds_what_its_strangers_ask(model: InfiniForCausalLM, cached: Shard) -> None:
    pool = Pool([cached], model, LAYER)
    for seed in range(10):
        episode = pool.episode(12, random.Random(seed))
        told = {pool.facts[t.fact].key for t in episode.told}
        assert all(pool.facts[a.fact].key in told for a in episode.asked)
        assert not any(pool.facts[a.fact].key in told for a in episode.strangers)


def test_an_episode_may_tell_nothing(model: InfiniForCausalLM, cached: Shard) -> None:
    pool = Pool([cached], model, LAYER)
    episode = pool.episode(0, random.Random(0), asked=[replace(pool.known[0], version=-1)])
    assert (episode.told, episode.asked, episode.strangers) == ([], [], [])


def test_a_cache_without_facts_is_refused(model: InfiniForCausalLM, cached: Shard) -> None:
    empty = Shard(cached.hidden, cached.ids, cached.labels, cached.streams, [], [], [])
    memory = memory_of(model)
    assert isinstance(memory, nn.Module)
    with pytest.raises(UsageError, match="prepare more"):
        KeysStage(memory, Pool([empty], model, LAYER))


def test_held_out_recall_is_logged_and_drawn(model: InfiniForCausalLM, cached: Shard, tmp_path: Path) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    said: list[str] = []
    passing: list[str] = []
    check = Check(5, lambda: recall_on(memory, pool, facts=8, questions=8), said.append)
    run_stage(KeysStage(memory, pool), tmp_path, Plan(10), check=check, report=passing.append)
    lines = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    figures = [line["check"] for line in lines if "check" in line]
    assert len(figures) == len(said) == 2
    assert set(figures[0]) == {"recall", "updated", "refused", "unknown"}
    assert all(0 <= share <= 1 for share in figures[-1].values())
    assert passing[-1].startswith("keys [####################] 10/10")
    assert series(lines, "check")["recall"] == [(5, figures[0]["recall"]), (10, figures[1]["recall"])]
    for picture in draw(tmp_path):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_gate_that_is_always_open_writes_all_values_and_all_strays(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    memory.gate_taps.data.zero_()
    memory.gate_out.data.zero_()
    for bias, share in ((1.0, 1.0), (-1.0, 0.0)):
        memory.gate_bias.data.fill_(bias)
        assert gate_on(memory, pool) == {"written": share, "stray": share}


def test_a_value_s_first_token_is_written_with_the_second(model: InfiniForCausalLM, cached: Shard) -> None:
    """A gate that is open at the second token of each value lets the first in as well, and that only."""
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    told = [t for tellings in pool.told.values() for t in tellings if t.count > 1]
    later = {at for t in told for at in range(t.start + 1, t.start + t.count)}
    first = {t.start for t in told}
    logits = [6.0 if at in later else -NEARLY / 2 if at in first else -NEARLY for at in range(len(pool.ids))]
    order = iter(torch.tensor(logits).split(PIECE))
    memory.write_logits = lambda states: next(order)  # type: ignore[method-assign]
    done = gate_on(memory, Pool([cached], model, LAYER))
    assert done["written"] == pytest.approx(len(told) / sum(map(len, pool.told.values())))
    assert done["stray"] == 0


def test_strays_are_what_the_gate_lets_through_of_talk(model: InfiniForCausalLM, cached: Shard) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    kinds = [pool.streams[number][2] for number in pool.stream.tolist()]
    talk = [at for at, kind in enumerate(kinds) if kind == "talk" and pool.labels[at] == OTHER]
    told = {at for t in value_places_of(pool) for at in t}
    opened = {*talk[10:13], talk[20], *told}
    pool.labels[talk[20]] = IGNORE  # what people say of themselves is not judged, and a stray all the same
    logits = torch.tensor([6.0 if at in opened else -9.0 for at in range(len(pool.ids))])
    order = iter(logits.split(PIECE))
    memory.write_logits = lambda states: next(order)  # type: ignore[method-assign]
    runs = Strays(memory, pool).runs
    assert [(run.start, run.count) for run in runs] == [(talk[10], 3), (talk[20], 1)]
    assert told.isdisjoint(at for run in runs for at in range(run.start, run.start + run.count))


def value_places_of(pool: Pool) -> list[range]:
    """The places of every value told."""
    return [range(t.start, t.start + t.count) for tellings in pool.told.values() for t in tellings]


def test_strays_stand_before_between_and_after_and_are_replaced_by_nothing(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    strays, rng = Strays(memory, pool), random.Random(3)
    episode = pool.episode(6, rng)
    mixed = strays.into(episode, 400, rng)
    assert [t for t in mixed.told if t.fact >= 0] == episode.told
    facts = [at for at, t in enumerate(mixed.told) if t.fact >= 0]
    others = [at for at, t in enumerate(mixed.told) if t.fact < 0]
    assert min(others) < facts[0]
    assert any(facts[0] < at < facts[-1] for at in others)
    after = [at for at in others if at > facts[-1]]
    assert len(after) > len(others) // 4
    assert sum(mixed.told[at].count for at in others) >= 300
    assert len({mixed.told[at].start for at in others}) == len(others)
    slots = slots_of(pool, mixed)
    stray = torch.tensor([t.fact < 0 for t in mixed.told for _ in range(t.count)])
    same = same_slot(slots)
    assert len(slots) == len(stray)
    assert not bool(same[stray].any())
    assert not bool(same[:, stray].any())


def test_the_made_up_bank_is_the_products(model: InfiniForCausalLM, cached: Shard) -> None:
    """Same keys, same fading and same reads as the layer's own bank gives for the same tokens in that
    order."""
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    episode = pool.episode(6, random.Random(2))
    with torch.no_grad():
        bank = write(memory, pool, episode, ideal=False)
        count, width = bank.keys.shape
        marked = len(memory.fade)
        marks = unit(F.linear(pool.around(bank.places - 1), memory.fade))
        start = BankState(
            torch.zeros(1, count, width),
            torch.zeros(1, count, marked),
            torch.zeros(1, count, 32),
            torch.zeros(1, count, dtype=torch.long),
            torch.zeros(1, count),
            torch.zeros(1, count, dtype=torch.long),
            torch.zeros(1, count, dtype=torch.long),
            torch.zeros(1, count),
            torch.zeros(1, count, dtype=torch.long),
        )
        new = (bank.keys[None], marks[None], pool.values(bank.ids)[None], bank.ids[None])
        sure, rule = torch.ones(1, count), memory.rule(torch.float32)
        joined = F.pad(bank.places[1:] == bank.places[:-1] + 1, (1, 0))[None]
        written = torch.tensor([count])
        novelty = (pool.around(bank.places - 1) @ memory.novelty)[None]
        before = written - count
        real = bank_write(
            start, new, strength=sure, joined=joined, novelty=novelty, written=before, rule=rule
        )
        places = bank.places[:5]
        queries = bank.keys[:5]
        expected = bank_read(queries[None], pool.ids[places][None], real, written, rule)
        ours, going, ended = follow(pool, bank, places, read(memory, bank, queries).exp())
    assert joined.any()
    torch.testing.assert_close(ours[:, :-1] @ pool.values(bank.ids), expected.values[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[:, -1], expected.null[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(going, expected.going[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ended, expected.ended[0], atol=1e-4, rtol=1e-4)


def test_what_a_stream_tells_is_read_when_the_token_after_it_has_been(
    model: InfiniForCausalLM, text: Path, tmp_path: Path
) -> None:
    """Before its own tokens are written a young conversation adds nothing, after them it does."""
    maker = StreamMaker(
        FactMaker("train"),
        Filler(text),
        offsets_of(ByteTokenizer()),
        random.Random(5),
        general=[("What is gravity?", "A force.")],
    )
    file = tmp_path / "mixed-00000.safetensors"
    write_shard(file, draw_mixed(maker, 6000), maker.facts, lower(model, LAYER))
    pool = Pool([read_shard(file)], model, LAYER)
    memory = memory_of(model)
    memory.alpha.data.fill_(1.0)
    memory.found_bias.data.fill_(0.3)
    stage = RecallStage(memory, pool, model, layer=LAYER, streams=2, longest=4000)
    number = next(n for n in range(len(pool.streams)) if n in pool.told_in)
    start, length, _ = pool.streams[number]
    own = sorted(pool.told_in[number], key=lambda told: told.start)
    bank = write(memory, pool, Episode(own, [], []))
    _, added, _, _ = stage.rows.added([Row(start, length, bank)])
    first = own[0].start - start
    assert not added[0, : first + 2].any()
    assert bool(added[0, first + 2].any())
    loss, numbers = stage.loss(random.Random(0))
    assert bool(loss.isfinite())
    assert numbers["answers"] > 0


def test_pages_tell_and_ask_outside_of_any_conversation(text: Path) -> None:
    """No control token is in them; what is asked for was told on another page, and its value follows."""
    tokenizer = ByteTokenizer()
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(tokenizer), random.Random(2))
    streams = draw_pages(maker, 20_000)
    control = {tokenizer.control_id("<|im_start|>"), tokenizer.control_id("<|im_end|>")}
    told = {t.fact: stream for _, stream in streams for t in stream.told}
    asked = [(a, stream) for _, stream in streams for a in stream.asked]
    assert {kind for kind, _ in streams} == {"page"}
    assert not any(control & set(stream.ids) for _, stream in streams)
    assert len(asked) > 10
    for a, stream in asked:
        assert told[a.fact] is not stream
        said = tokenizer.decode(stream.ids[a.answer : a.end])
        assert said.strip() == f"{maker.facts[a.fact][a.version].value}."
        before, fact = tokenizer.decode(stream.ids[: a.answer]), maker.facts[a.fact][a.version]
        own = answer_start(fact, echo_of(fact)).strip() if spoken_of(fact) else ":"
        assert before.rstrip().endswith((" is", ":", own))


def test_half_of_the_pages_have_the_same_lines_over_and_over_or_a_book_before_they_tell(text: Path) -> None:
    """A write gate that never met a window full of the same lines does not write a key that comes then."""
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(ByteTokenizer()), random.Random(2))
    begins = [maker.page_stream(1, ()).told[0].start for _ in range(60)]
    assert 20 <= sum(start > 1000 for start in begins) <= 45
    assert min(begins) < 400
    # Where one only asks, it would be too long to be learned from.
    assert max(maker.page_stream(0, (number,)).asked[0].answer for number in range(20)) < 1000


def test_recall_and_keys_learn_from_pages(model: InfiniForCausalLM, text: Path, tmp_path: Path) -> None:
    """Where nothing but pages is there, their values are what is answered, out of what other pages told."""
    maker = StreamMaker(FactMaker("train"), Filler(text), offsets_of(ByteTokenizer()), random.Random(2))
    file = tmp_path / "page-00000.safetensors"
    write_shard(file, draw_pages(maker, 9000), maker.facts, lower(model, LAYER))
    pool = Pool([read_shard(file)], model, LAYER)
    assert bool(KeysStage(memory_of(model), pool).loss(random.Random(0))[0].isfinite())
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER, longest=4000)
    row = stage._whole(random.Random(0))[0]
    assert row.asked
    for a in row.asked:
        [told] = pool.told[a.fact]
        assert told.start in row.bank.places.tolist()
        assert not row.start <= told.start < row.start + row.length
    loss, numbers = stage.loss(random.Random(0))
    assert bool(loss.isfinite())
    assert numbers["answers"] > 0


def test_a_question_that_stands_alone_begins_with_its_own_turn(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    pool = Pool([cached], model, LAYER)
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER)
    opens = int(pool.ids[0])
    for _, questions in stage.asking[:5]:
        for a in questions:
            turn = stage._turn(a)
            assert int(pool.ids[turn]) == opens
            # Its own user turn and the answer's: two are opened from here to the answer.
            assert int((pool.ids[turn : a.answer] == opens).sum()) == 2


def test_questions_that_share_a_memory_are_told_in_it(model: InfiniForCausalLM, cached: Shard) -> None:
    pool = Pool([cached], model, LAYER)
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER, longest=700)
    shared = 0
    for number in range(30):
        rows = stage._apiece(random.Random(number))
        assert all(row.bank is rows[0].bank for row in rows)
        shared += len(rows) > 1
        asked = [a for row in rows for a in row.asked if a.version >= 0]
        told = set(rows[0].bank.places.tolist()) if rows else set()
        for a in asked:
            value = next(t for t in pool.told[a.fact] if t.version == a.version)
            assert set(range(value.start, value.start + value.count)) <= told
    assert shared > 5


def test_first_questions_and_first_tellings_begin_with_their_conversation(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    """Nothing before them shows how answers look."""
    pool = Pool([cached], model, LAYER)
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER)
    starts = {start for start, _, _ in pool.streams}
    rows = [row for number in range(200) for row in stage._first(random.Random(number))]
    versions = {row.asked[0].version for row in rows}
    assert SAID_BACK in versions
    assert 0 in versions
    for row in rows:
        assert row.start in starts
        assert row.start + row.length == row.asked[0].end
        earlier = [a for a in pool.asked if row.start <= a.answer < row.asked[0].answer]
        assert earlier == []


def test_what_is_let_through_of_a_stream_is_in_its_own_memory(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    """Also of books, which tell hardly anything and are read with their strays in the memory."""
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    memory.gate_bias.data.fill_(0.5)
    stage = RecallStage(memory, pool, model, layer=LAYER)
    kinds = {pool.streams[number][2] for number in stage.heard}
    assert kinds == {"talk", "book"}
    for number in stage.heard[:6]:
        start, length, _ = pool.streams[number]
        own = {at for run in stage.strays.of[number] for at in range(run.start, run.start + run.count)}
        half = start + length // 2
        assert own
        bank = stage._own_bank(random.Random(1), number, (), upto=half)
        assert {at for at in own if at < half} <= set(bank.places.tolist())


def test_what_several_rows_share_is_run_once(model: InfiniForCausalLM) -> None:
    """Rows behind the same tokens have the states that they have with those tokens before each of them."""
    h = torch.randn(2, 9, 32)
    shared, own = torch.randn(1, 5, 32), h
    with torch.no_grad():
        past = past_of(model, shared, first=LAYER, last=3)
        ours = decode(model, own, first=LAYER, last=3, past=past)
        whole = decode(model, torch.cat((shared.expand(2, -1, -1), own), dim=1), first=LAYER, last=3)
    torch.testing.assert_close(ours, whole[:, 5:], atol=1e-5, rtol=1e-4)


def test_replies_to_what_is_told_may_differ_from_the_base(model: InfiniForCausalLM, cached: Shard) -> None:
    pool = Pool([cached], model, LAYER)
    stage = RecallStage(memory_of(model), pool, model, layer=LAYER)
    said_back = [a for a in pool.asked if a.version == SAID_BACK]
    assert said_back
    assert any(a.count for a in said_back)
    for a in said_back:
        start, length, _ = pool.streams[int(pool.stream[a.answer])]
        assert bool(stage._replies(start, length)[a.answer - start : a.end - start].all())
        said = ByteTokenizer().decode(pool.ids[a.answer : a.end - 1].tolist())
        assert said.startswith("Got it")
        told = [t for t in pool.told_in[int(pool.stream[a.answer])] if t.start < a.answer]
        latest = max(told, key=lambda t: t.start)
        if a.count:
            assert not pool.facts[latest.fact].kind.startswith(KIND)
        else:
            assert said in (KEPT, ALL_OF_IT)
        if a.count:
            value = ByteTokenizer().decode(pool.ids[a.value : a.value + a.count].tolist()).strip()
            assert said.endswith(f"{value}.")
    for number, (start, length, kind) in enumerate(pool.streams):
        if kind == "talk" or number not in pool.told_in:
            assert not bool(stage._replies(start, length).any())


def test_a_token_replaces_those_with_the_same_question_and_beginning(
    model: InfiniForCausalLM, cached: Shard
) -> None:
    pool = Pool([cached], model, LAYER)
    number = next(n for n, told in pool.told.items() if len(told) > 1)
    first, second = sorted(pool.told[number], key=lambda told: told.version)[:2]
    same = same_slot(slots_of(pool, Episode([first, second], [], [])))
    assert bool(same[0, first.count])
    one, two = (pool.ids[t.start : t.start + t.count].tolist() for t in (first, second))
    alike = next(
        (at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
    )
    assert int(same.sum()) == min(alike + 1, len(one), len(two))


@torch.no_grad()
def test_keys_are_made_of_what_the_model_sees_of_a_stream(model: InfiniForCausalLM, cached: Shard) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    assert memory.topics is not None
    for parameter in memory.topics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    start, length, _ = max(pool.streams[1:], key=lambda stream: stream[1])
    places = torch.arange(start, start + min(length, 60))
    cache = model.model.new_cache()
    x = pool.inputs(places)[None]
    tokens = pool.values(pool.ids[places])[None]
    seen = memory.looked_back(x, tokens, pool.ids[places][None], cache.states[LAYER], None)
    expected = headwise_unit(seen.projected, memory.head_weight)[0]
    torch.testing.assert_close(project(memory, seen_at(memory, pool, places)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("topics", [True, False])
def test_what_places_beside_each_other_see_is_worked_out_once(
    topics: bool, model: InfiniForCausalLM, cached: Shard
) -> None:
    memory, pool = memory_of(model), Pool([cached], model, LAYER)
    memory.topics = memory.topics if topics else None
    for number in (0, 1, len(pool.streams) // 2, len(pool.streams) - 1):
        start, length, _ = pool.streams[number]
        for first, count in ((start, length), (start, 1), (start + 3, length - 5), (start + length - 1, 1)):
            got = seen_along(memory, pool, first, count)
            assert torch.allclose(got, seen_at(memory, pool, torch.arange(first, first + count)), atol=1e-5)


def test_neighbours_resemble_a_fact_and_are_not_it(model: InfiniForCausalLM, cached: Shard) -> None:
    pool, rng, found = Pool([cached], model, LAYER), random.Random(0), 0
    for number in pool.told:
        fact = pool.facts[number]
        for other in (pool.facts[n] for n in pool.neighbours(number, 2, rng)):
            assert other.key != fact.key
            assert other.noun == fact.noun or other.key[:2] == fact.key[:2]
            found += 1
    assert found > 20


def test_a_trained_memory_is_given_topic_heads_that_change_little(
    model: InfiniForCausalLM, cached: Shard, tmp_path: Path
) -> None:
    model.config.memory_topics = 0
    plain, pool = BankMemory(model.config, LAYER), Pool([cached], model, LAYER)
    places = torch.arange(40)
    before = project(plain, seen_at(plain, pool, places)).detach()
    loaded = cast("LoadedModel", SimpleNamespace(model=model))
    kept = Options(tmp_path, tmp_path, topics=3, fresh=False)
    give_topics(loaded, plain, kept)
    assert (model.config.memory_topics, plain.context.shape[1]) == (3, 13 * 32)
    after = project(plain, seen_at(plain, pool, places)).detach()
    assert not torch.equal(before, after)
    assert float((before * after).sum(dim=1).min()) > 0.99
    heads = plain.topics
    give_topics(loaded, plain, replace(kept, topics=5))
    assert plain.topics is heads
    give_topics(loaded, plain, replace(kept, topics=0, fresh=True))
    assert (plain.topics, plain.context.shape[1]) == (None, 10 * 32)
