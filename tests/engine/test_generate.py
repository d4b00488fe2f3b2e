"""InfiniEngine keeps the engine's contract: what was fed is what was seen, however it was cut or stopped."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.errors import StateError, UsageError
from infinichat.messages import SamplingOptions
from infinichat.model.cache import InfiniCache
from infinichat.protocols import Engine, GeneratedToken, StateDump
from tests.engine.conftest import MakeEngine, some_ids

GREEDY = SamplingOptions(temperature=0, max_tokens=30)
NO_END: list[int] = []


def feed(engine: InfiniEngine, state: InfiniCache, ids: list[int], **options: object) -> list[int]:
    return [p.done for p in engine.feed(state, ids, **options)]  # type: ignore[arg-type]


def answer(
    engine: InfiniEngine, state: InfiniCache, options: SamplingOptions = GREEDY, ends: list[int] = NO_END
) -> list[GeneratedToken]:
    return list(engine.generate(state, options, end_ids=ends))


def ids_of(items: list[GeneratedToken]) -> list[int]:
    return [item.token_id for item in items if item.fed and item.token_id is not None]


def same(a: StateDump, b: StateDump) -> bool:
    return dict(a.tensors) == dict(b.tensors) and dict(a.meta) == dict(b.meta)


class After:
    """A cancel flag that is set after it was looked at ``looks`` times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_it_satisfies_the_protocol(make_engine: MakeEngine) -> None:
    engine: Engine = make_engine()
    assert engine.info.window == 24


def test_progress_comes_at_every_second_segment_end_while_the_window_fills_then_at_each(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    state = engine.new_state()
    assert feed(engine, state, some_ids(3)) == [3]
    assert feed(engine, state, some_ids(20)) == [13, 20]
    assert engine.tokens_seen(state) == 23
    assert engine.window_tokens(state) == 23
    assert feed(engine, state, some_ids(20)) == [1, 9, 17, 20]


@pytest.mark.parametrize("format", [None, "float32", "int8"])
def test_a_stopped_feed_that_goes_on_gives_the_very_same_state(
    format: str | None, make_engine: MakeEngine
) -> None:
    engine = make_engine(format)
    ids = some_ids(100)
    whole, stopped = engine.new_state(), engine.new_state()
    feed(engine, whole, ids)
    done = feed(engine, stopped, ids, cancel=After(4))[-1]
    assert 0 < done < 100
    feed(engine, stopped, ids[done:])
    assert same(engine.dump_state(whole), engine.dump_state(stopped))


def test_a_decode_feed_equals_having_generated_those_ids(make_engine: MakeEngine) -> None:
    engine = make_engine()
    spoken, replayed = engine.new_state(), engine.new_state()
    for state in (spoken, replayed):
        feed(engine, state, some_ids(30))
    ids = ids_of(answer(engine, spoken))
    assert feed(engine, replayed, ids, mode="decode") == [30]
    assert same(engine.dump_state(spoken), engine.dump_state(replayed))


def test_a_decode_feed_reports_every_64_ids_and_can_be_stopped(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert feed(engine, engine.new_state(), some_ids(130), mode="decode") == [64, 128, 130]
    state = engine.new_state()
    # Looked at once before the ids, then before each of them but the first.
    assert feed(engine, state, some_ids(130), mode="decode", cancel=After(10)) == [10]
    assert engine.tokens_seen(state) == 10


@pytest.mark.parametrize("format", [None, "float32", "int8"])
@pytest.mark.parametrize("history", [5, 24, 33, 90])
def test_greedy_goes_on_after_dump_and_load_as_if_never_stopped(
    history: int, format: str | None, make_engine: MakeEngine
) -> None:
    engine = make_engine(format)
    state = engine.new_state()
    feed(engine, state, some_ids(history))
    first = ids_of(answer(engine, state, replace(GREEDY, max_tokens=7)))
    dump = engine.dump_state(state)
    expected = ids_of(answer(engine, state))
    other = make_engine(format)
    loaded = other.load_state(dump)
    assert other.tokens_seen(loaded) == history + len(first)
    assert ids_of(answer(other, loaded)) == expected
    assert same(engine.dump_state(state), other.dump_state(loaded))


def test_a_dump_never_changes_under_its_owner(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    feed(engine, state, some_ids(40))
    dump = engine.dump_state(state)
    before = {name: record.data for name, record in dump.tensors.items()}
    loaded = engine.load_state(dump)
    for one in (state, loaded):
        feed(engine, one, some_ids(40, seed=5))
    assert {name: record.data for name, record in dump.tensors.items()} == before


def test_an_end_token_is_reported_and_not_fed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state, again = engine.new_state(), engine.new_state()
    for one in (state, again):
        feed(engine, one, some_ids(10))
    third = ids_of(answer(engine, again))[2]
    items = answer(engine, state, ends=[third])
    assert items[-1].token_id == third
    assert (items[-1].fed, items[-1].finish) == (False, "stop")
    assert third not in ids_of(items)
    assert engine.tokens_seen(state) == 10 + len(ids_of(items))


def test_the_last_item_alone_says_how_it_ended(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    feed(engine, state, some_ids(10))
    items = answer(engine, state, replace(GREEDY, max_tokens=4))
    assert [item.finish for item in items] == [None, None, None, "length"]
    assert engine.tokens_seen(state) == 14
    items = list(engine.generate(state, GREEDY, end_ids=[], cancel=After(2)))
    assert [item.finish for item in items] == [None, None, "stopped"]
    assert items[-1].token_id is None
    assert engine.tokens_seen(state) == 16


def test_a_stop_string_ends_the_answer_before_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    texts = []
    for stop in ((), None):
        state = engine.new_state()
        feed(engine, state, some_ids(10))
        # Printable ids only, by closing all others.
        items = answer(engine, state, replace(GREEDY, stop=stop if stop is not None else (texts[0][2:4],)))
        texts.append("".join(item.text for item in items))
    cut = texts[0].index(texts[0][2:4])
    assert texts[1] == texts[0][:cut]


def test_the_same_seed_gives_the_same_ids_and_another_seed_others(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    feed(engine, state, some_ids(10))
    dump = engine.dump_state(state)

    def drawn(seed: int | None) -> list[int]:
        options = SamplingOptions(temperature=1.0, seed=seed, max_tokens=20)
        return ids_of(answer(engine, engine.load_state(dump), options))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


def test_two_states_never_share_anything(make_engine: MakeEngine) -> None:
    engine = make_engine()
    alone, a, b = engine.new_state(), engine.new_state(), engine.new_state()
    feed(engine, alone, some_ids(50, seed=1))
    for start in range(0, 50, 10):
        feed(engine, a, some_ids(50, seed=1)[start : start + 10], mode="decode")
        feed(engine, b, some_ids(50, seed=2)[start : start + 10], mode="decode")
    torch.testing.assert_close(a.last_hidden, alone.last_hidden, rtol=1e-4, atol=1e-4)


def test_mistakes_are_named(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="Nothing was fed"):
        answer(engine, engine.new_state())
    with pytest.raises(UsageError, match="Token id 9999"):
        feed(engine, engine.new_state(), [1, 9999])
    with pytest.raises(StateError, match="str"):
        engine.tokens_seen("a state")


def test_states_are_usable_from_another_thread(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    worker = threading.Thread(target=feed, args=(engine, state, some_ids(40)))
    worker.start()
    worker.join()
    assert len(ids_of(answer(engine, state))) == 30


def test_iterating_leaves_no_grad_mode_behind(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    for _ in engine.feed(state, some_ids(20)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    next(iter(engine.generate(state, GREEDY, end_ids=[])))
    assert not torch.is_inference_mode_enabled()


def test_layer_reports_tell_what_was_written(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    (empty,) = engine.layer_memory(state)
    assert (empty.layer, empty.written, empty.norm, empty.saturation) == (1, 0, 0.0, 0.0)
    feed(engine, state, some_ids(100))
    (full,) = engine.layer_memory(state)
    assert full.written > 0
    assert full.norm > 0
    assert 0 < full.saturation <= 1
    assert 0 <= full.gate <= 1


def test_state_bytes_stop_growing_when_the_window_is_full(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    feed(engine, state, some_ids(24 + 8 * 2))
    once = engine.state_bytes(state)
    feed(engine, state, some_ids(8 * 50))
    assert engine.state_bytes(state) == once == engine.dump_state(state).nbytes
