"""What the guide to Infini-attention chats promises and its code does not do, one test for each promise.

The guide's tokenizer gives every real word the id 0, its attention sees the future, its bot says one token a
message and crashes at batch 1, its context grows for ever and is read anew each time, its positions are a
table that ends at a million, and what one conversation stored the next one finds.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat import TextDelta, TurnFinished, open_session
from infinichat.config import Settings
from infinichat.engine.generate import InfiniEngine
from infinichat.messages import SamplingOptions
from infinichat.model.tokenizer import SpecialTokens, Tokenizer
from tests.engine.tiny import engine_over
from tests.engine.tiny import tiny_model as tiny_chat
from tests.model.conftest import byte_tokenizer_json
from tests.model.tiny_infini import (
    KINDS,
    MARK,
    WINDOWS,
    Kind,
    close_memory,
    recalling_model,
    some_ids,
    tiny_model,
)

kinds = pytest.mark.parametrize("kind", KINDS)
windows = pytest.mark.parametrize("window", WINDOWS)
LONG = 21


def logits_of(model: Any, ids: Tensor, cache: Any = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, past_key_values=cache).logits
    return found


def test_the_tokenizer_tells_words_apart_and_gives_every_text_back() -> None:
    tokenizer = Tokenizer(byte_tokenizer_json(), SpecialTokens(eos="<|im_end|>"))
    text = "Hello, how are you? Grüße, 日本 and 🦊 at 12:30\n\n    indented <|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(set(ids)) > 20
    assert tokenizer.encode("dog") != tokenizer.encode("cat")
    assert tokenizer.control_id("<|im_end|>") not in ids, "a text cannot end a turn"


@kinds
@windows
def test_attention_is_causal_at_every_position(kind: Kind, window: str) -> None:
    model, ids = tiny_model(memory=kind, **WINDOWS[window]), some_ids(LONG)
    before = logits_of(model, ids)
    for position in range(LONG):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 7) % 39 + 1
        after = logits_of(model, changed)
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(after[:, position], before[:, position])


@kinds
def test_a_batch_of_one_and_of_more_give_the_same_rows(kind: Kind) -> None:
    model, ids = tiny_model(memory=kind), some_ids(LONG, rows=3)
    together = logits_of(model, ids)
    for row in range(3):
        alone = logits_of(model, ids[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-9)


@pytest.fixture
def engine() -> InfiniEngine:
    return engine_over(tiny_chat())


def test_an_answer_has_as_many_tokens_as_are_asked_for(engine: InfiniEngine) -> None:
    state = engine.new_state()
    list(engine.feed(state, list(b"Tell me something.")))
    for most in (1, 7, 40):
        options = SamplingOptions(temperature=0, repetition_penalty=1.0, max_tokens=most)
        answer = list(engine.generate(state.clone(), options, end_ids=()))
        assert len(answer) == most
    # And it stops where the model ends it.
    end = answer[4].token_id
    assert end is not None
    stopped = list(engine.generate(state.clone(), options, end_ids=(end,)))
    assert len(stopped) <= 5
    assert stopped[-1].finish == "stop"


@kinds
def test_memory_is_bounded_however_long_the_text(kind: Kind) -> None:
    model = tiny_model(memory=kind, dtype=torch.float32)
    cache, sizes = model.model.new_cache(), []
    for turn in range(40):
        logits_of(model, some_ids(24, seed=turn), cache)
        sizes.append(cache.nbytes)
        assert cache.window_tokens <= model.config.window
    assert cache.tokens_seen == 960
    assert max(sizes[2:]) == sizes[2]
    assert all(bool(memory.M.isfinite().all()) for memory in cache.memories.values())


def test_a_message_is_read_once_and_what_came_before_never_again(engine: InfiniEngine) -> None:
    read: list[int] = []
    projection = engine.model.model.layers[0].self_attn.k_proj
    hook = projection.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    state = engine.new_state()
    for message in (b"first message " * 8, b"second", b"third one"):
        read.clear()
        list(engine.feed(state, list(message)))
        assert sum(read) == len(message)
    hook.remove()


@kinds
def test_nothing_leaks_from_one_conversation_into_another(kind: Kind) -> None:
    model = tiny_model(memory=kind)
    mine, other = some_ids(LONG, seed=1), some_ids(LONG, seed=2)
    alone = logits_of(model, mine)
    first, second = model.model.new_cache(), model.model.new_cache()
    parts = []
    for start in range(0, LONG, 5):
        parts.append(logits_of(model, mine[:, start : start + 5], first))
        logits_of(model, other[:, start : start + 5], second)
    torch.testing.assert_close(torch.cat(parts, dim=1), alone, rtol=1e-9, atol=1e-9)
    # Nor between the rows of a batch, nor from one call to the next.
    rows = logits_of(model, torch.cat((mine, other)))
    torch.testing.assert_close(rows[:1], alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits_of(model, mine), alone, rtol=0, atol=0)
    assert not [name for name, _ in model.named_buffers()], "no state hides in the model"


def test_what_left_the_window_is_still_known() -> None:
    """Two tokens told after a mark are said again after the mark, hundreds of tokens later."""
    model = recalling_model()
    told = [*MARK, 30, 31]
    filler = (some_ids(200)[0] % 20 + 5).tolist()
    ids = torch.tensor([[*told, *filler, *MARK]])
    cache = model.model.new_cache()
    assert int(logits_of(model, ids, cache)[0, -1].argmax()) == 30
    assert cache.window_tokens <= model.config.window < 200
    close_memory(model)
    assert int(logits_of(model, ids)[0, -1].argmax()) != 30, "without the memory nobody knows"


@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_the_gate_goes_from_window_alone_to_memory_alone(kind: Kind) -> None:
    model, ids = tiny_model(memory=kind, **WINDOWS["hard"]), some_ids(LONG)
    plain = tiny_model(memory_layers=[], **WINDOWS["hard"])
    plain.load_state_dict(model.state_dict(), strict=False)
    close_memory(model)
    torch.testing.assert_close(logits_of(model, ids), logits_of(plain, ids), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.memory.beta.fill_(float("inf"))
    # Where the memory alone speaks, what stands in the window cannot matter.
    other = ids.clone()
    other[0, 16] = ids[0, 16] % 39 + 1
    after, before = logits_of(model, other)[0, 17:], logits_of(model, ids)[0, 17:]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@kinds
def test_positions_need_no_table_and_are_exact_at_ten_million(kind: Kind) -> None:
    model, ids = tiny_model(memory=kind, max_position_embeddings=16, **WINDOWS["hard"]), some_ids(LONG)
    later = model.model.new_cache()
    later.seen = later.evicted = 10_000_000
    torch.testing.assert_close(logits_of(model, ids, later), logits_of(model, ids), rtol=1e-6, atol=1e-6)
    assert later.tokens_seen == 10_000_000 + LONG


def test_a_chat_says_whole_answers_and_goes_on_after_it_was_closed(engine: InfiniEngine) -> None:
    settings = Settings(sampling=SamplingOptions(temperature=0, repetition_penalty=1.0, max_tokens=24))
    with open_session("guide", engine=engine, settings=settings) as session:
        events = list(session.send("Hello there, who are you?"))
        assert isinstance(events[-1], TurnFinished)
        text = "".join(event.text for event in events if isinstance(event, TextDelta))
        assert session.messages()[-1].content == text
        assert events[-1].stats.tokens_out > 1
        list(session.send("And what is my name?"))
        went_on = [message.content for message in session.messages()]
    with open_session("guide", engine=engine, settings=settings) as session:
        assert [message.content for message in session.messages()] == went_on
        assert len(went_on) == 4
