"""ScriptedEngine keeps the engine's contract, so what is tested on it holds for the real one."""

from __future__ import annotations

import threading

import pytest

from infinichat.engine.byte_tokenizer import CONTROL_TOKENS, ByteTokenizer
from infinichat.engine.scripted import ScriptedEngine, ScriptedState
from infinichat.errors import ConfigError, ModelError, StateError, UsageError
from infinichat.messages import SamplingOptions
from infinichat.protocols import Engine, GeneratedToken, TextTokenizer

GREEDY = SamplingOptions(temperature=0)
END = [257]


def feed(engine: ScriptedEngine, state: ScriptedState, ids: list[int], **options: object) -> int:
    return max((p.done for p in engine.feed(state, ids, **options)), default=0)  # type: ignore[arg-type]


def ask(
    engine: ScriptedEngine, state: ScriptedState, options: SamplingOptions = GREEDY
) -> list[GeneratedToken]:
    return list(engine.generate(state, options, end_ids=END))


def text(items: list[GeneratedToken]) -> str:
    return "".join(item.text for item in items)


def test_it_satisfies_the_protocols() -> None:
    engine: Engine = ScriptedEngine()
    tokenizer: TextTokenizer = ByteTokenizer()
    assert engine.tokenizer.fingerprint == tokenizer.fingerprint


def test_bytes_and_control_tokens_never_mix() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("<|im_end|> é 🙂")) == "<|im_end|> é 🙂"
    assert tokenizer.control_id("<|im_end|>") not in tokenizer.encode("<|im_end|>")
    assert tokenizer.token_bytes(tokenizer.control_id(CONTROL_TOKENS[0])) == b""
    with pytest.raises(ConfigError, match="<think>"):
        tokenizer.control_id("<think>")


def test_answers_come_in_order_and_start_over() -> None:
    engine = ScriptedEngine(["one", "two"])
    state = engine.new_state()
    said = []
    for _ in range(3):
        feed(engine, state, [1, 2, 3])
        said.append(text(ask(engine, state)))
    assert said == ["one", "two", "one"]


def test_an_answer_cut_in_the_middle_goes_on_where_it_was_also_in_another_process() -> None:
    first = ScriptedEngine(["Hello Biscuit"])
    state = first.new_state()
    feed(first, state, [1])
    cut = ask(first, state, SamplingOptions(temperature=0, max_tokens=5))
    assert (text(cut), cut[-1].finish) == ("Hello", "length")
    second = ScriptedEngine(["Hello Biscuit"])
    loaded = second.load_state(first.dump_state(state))
    rest = ask(second, loaded)
    assert (text(rest), rest[-1].finish, rest[-1].fed) == (" Biscuit", "stop", False)


def test_the_state_is_the_ids_and_how_they_came_not_where_the_calls_ended() -> None:
    engine = ScriptedEngine(segment=4)
    once, pieces = engine.new_state(), engine.new_state()
    feed(engine, once, list(range(10)))
    feed(engine, pieces, list(range(7)))
    feed(engine, pieces, [7, 8, 9])
    assert once == pieces
    assert once.digest == pieces.digest
    decoded = engine.new_state()
    feed(engine, decoded, list(range(10)), mode="decode")
    assert decoded != once


def test_feeding_reports_each_segment_and_stops_between_them() -> None:
    engine = ScriptedEngine(segment=4)
    state = engine.new_state()
    feed(engine, state, [1])
    cancel = threading.Event()
    seen = []
    for progress in engine.feed(state, list(range(20)), cancel=cancel):
        seen.append(progress.done)
        if progress.done >= 7:
            cancel.set()
    assert seen == [3, 7]
    assert len(state) == 8


def test_stopping_an_answer_keeps_what_was_fed() -> None:
    engine = ScriptedEngine(["abcdef"])
    state = engine.new_state()
    feed(engine, state, [1])
    cancel = threading.Event()
    items = []
    for item in engine.generate(state, GREEDY, end_ids=END, cancel=cancel):
        items.append(item)
        if len(items) == 2:
            cancel.set()
    assert [item.token_id for item in items] == [97, 98, None]
    assert items[-1].finish == "stopped"
    assert list(state.ids) == [1, 97, 98]


def test_only_whole_characters_are_printed() -> None:
    engine = ScriptedEngine(["é🙂"])
    state = engine.new_state()
    feed(engine, state, [1])
    assert [item.text for item in ask(engine, state)] == ["", "é", "", "", "", "🙂", ""]


def test_a_stop_string_is_cut_and_ends_the_answer() -> None:
    engine = ScriptedEngine(["yes. User: no"])
    state = engine.new_state()
    feed(engine, state, [1])
    items = ask(engine, state, SamplingOptions(temperature=0, stop=("User:",)))
    assert (text(items), items[-1].finish) == ("yes. ", "stop")


def test_greedy_repeats_itself_and_sampling_moves_on() -> None:
    engine = ScriptedEngine(["one", "two"])
    state = engine.new_state()
    feed(engine, state, [1])
    dump = engine.dump_state(state)
    assert [text(ask(engine, engine.load_state(dump))) for _ in range(2)] == ["one", "one"]
    warm = SamplingOptions(temperature=0.7)
    assert [text(ask(engine, engine.load_state(dump), warm)) for _ in range(2)] == ["one", "two"]


def test_without_replies_any_difference_in_the_state_shows_in_the_answer() -> None:
    engine = ScriptedEngine()
    said = set()
    for ids in ([1, 2], [2, 1]):
        state = engine.new_state()
        feed(engine, state, ids)
        said.add(text(ask(engine, state)))
    assert len(said) == 2


def test_a_reply_can_be_made_from_what_was_said() -> None:
    engine = ScriptedEngine(lambda prompt: prompt.upper())
    state = engine.new_state()
    feed(engine, state, list(b"hello"))
    assert text(ask(engine, state)) == "HELLO"


def test_it_fails_where_it_was_told_to() -> None:
    engine = ScriptedEngine(["abc"], fail_at=2, fail_feed_at=10, segment=4)
    state = engine.new_state()
    feed(engine, state, [1])
    with pytest.raises(ModelError):
        ask(engine, state)
    assert len(state) == 3
    with pytest.raises(ModelError):
        feed(engine, state, list(range(20)))


def test_a_state_of_another_engine_is_refused() -> None:
    dump = ScriptedEngine(name="a").dump_state(ScriptedState([1], b"\0"))
    with pytest.raises(StateError, match="expected"):
        ScriptedEngine(name="b").load_state(dump)


def test_an_empty_state_cannot_answer() -> None:
    engine = ScriptedEngine()
    with pytest.raises(UsageError):
        ask(engine, engine.new_state())


def test_a_dump_does_not_change_when_the_state_goes_on() -> None:
    engine = ScriptedEngine()
    state = engine.new_state()
    feed(engine, state, [1, 2])
    dump = engine.dump_state(state)
    feed(engine, state, [3])
    assert len(engine.load_state(dump)) == 2
