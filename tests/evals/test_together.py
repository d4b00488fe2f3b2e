"""Questions that are asked together get the answers that each would get alone."""

from __future__ import annotations

import pytest
import torch

from infinichat.chat_format import Utterance
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.together import Asker

from .conftest import MakeEngine

QUESTIONS = ("Code?", "What is it?", "Who was that again, please?", "Hm?", "Code?")


def told(bench: Bench, messages: int = 3) -> Conversation:
    conversation = bench.new_conversation()
    for number in range(messages):
        conversation.tell(Utterance("user", f"Number {number} is {417 + number}."))
        conversation.tell(Utterance("assistant", "Ok."))
    return conversation


def roomy(make_engine: MakeEngine, **changes: object) -> Bench:
    """A window that lets questions and answers in without anything leaving."""
    return Bench.of(make_engine(window=128, segment=128, **changes))


def fill(conversation: Conversation, room: int) -> None:
    """Feed until there is exactly ``room`` left, with something already gone from the window."""
    while conversation.cache.evicted == 0 or conversation.cache.room != room:
        conversation.feed([65])


@pytest.mark.parametrize("changes", [{}, {"memory": "recall"}, {"memory_layers": [0, 1]}, {"sinks": 0}])
def test_together_is_as_alone(make_engine: MakeEngine, changes: dict[str, object]) -> None:
    bench = roomy(make_engine, **changes)
    conversation = told(bench)
    fill(conversation, 120)
    assert int(next(iter(conversation.cache.memories.values())).written) > 0
    alone = [conversation.ask(question, max_tokens=12) for question in QUESTIONS]
    assert Asker(bench).ask(conversation, QUESTIONS, max_tokens=12) == alone
    assert len(set(alone)) > 2


def test_a_kernel_that_shows_all_that_came_before_is_not_asked(make_engine: MakeEngine) -> None:
    """The branches stand behind each other in the window, and must not see each other."""
    bench = roomy(make_engine)
    conversation = told(bench)
    fill(conversation, 120)
    alone = [conversation.ask(question, max_tokens=6) for question in QUESTIONS]
    for layer in bench.engine.model.model.layers:
        layer.self_attn.kernel = lambda q, k, v, scale: torch.zeros_like(q)
    assert Asker(bench).ask(conversation, QUESTIONS, max_tokens=6) == alone


def test_asking_together_changes_nothing(make_engine: MakeEngine) -> None:
    bench = roomy(make_engine)
    conversation = told(bench)
    fill(conversation, 120)
    before = conversation.cache.to_tensors()
    Asker(bench).ask(conversation, QUESTIONS, max_tokens=4)
    assert all(torch.equal(t, before[name]) for name, t in conversation.cache.to_tensors().items())
    assert conversation.previous == "assistant"


def test_where_a_segment_would_leave_in_between_they_are_asked_one_by_one(make_engine: MakeEngine) -> None:
    bench = roomy(make_engine)
    conversation = told(bench)
    fill(conversation, 30)
    alone = [conversation.ask(question, max_tokens=12) for question in QUESTIONS]
    assert Asker(bench).ask(conversation, QUESTIONS, max_tokens=12) == alone


def test_the_papers_memory_is_asked_one_by_one(make_engine: MakeEngine) -> None:
    bench = roomy(make_engine, memory="linear")
    conversation = told(bench)
    fill(conversation, 120)
    alone = [conversation.ask(question, max_tokens=6) for question in QUESTIONS]
    assert Asker(bench).ask(conversation, QUESTIONS, max_tokens=6) == alone


def test_text_without_a_chat_is_asked_together_too(make_engine: MakeEngine) -> None:
    bench = roomy(make_engine)
    conversation = bench.new_conversation()
    conversation.feed(conversation.raw("The pass key is 12345. " * 9))
    fill(conversation, 120)
    asked = (" The pass key is", " What is")
    alone = [conversation.ask(question, max_tokens=6) for question in asked]
    assert Asker(bench).ask(conversation, asked, max_tokens=6) == alone
