"""Messages to ids: each family's own marks, text that stays text, and pieces that add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinichat.chat_format import ChatFormat, Encoded, Utterance, chat_format
from infinichat.chat_templates import TEMPLATES, Control, Template
from infinichat.engine.byte_tokenizer import CONTROL_TOKENS, ByteTokenizer
from infinichat.errors import ConfigError

TOKENIZER = ByteTokenizer()
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)

TALK = (
    Utterance("user", "Hi"),
    Utterance("assistant", "Hello!", reason="stop"),
    Utterance("user", "And now?"),
    Utterance("assistant", "Bye.", reason="stop"),
)


def shown(ids: Sequence[int]) -> str:
    """Ids as one string, control tokens by name."""
    parts = [
        CONTROL_TOKENS[i - 256].encode() if i >= 256 else bytes([i]) for i in ids
    ]  # a text can hold the same words: the tests of that look at ids
    return b"".join(parts).decode()


# What the families' own templates write for TALK, with the system text "S".
WHOLE = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\nBye.<|im_end|>\n"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBye.<|eot_id|>"
    ),
    "llama2": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST]Hello!</s><s>[INST] And now? [/INST]Bye.</s>"),
    "mistral": "<s>[INST] S\n\nHi[/INST]Hello!</s>[INST] And now?[/INST]Bye.</s>",
    "gemma": (
        "<bos><start_of_turn>user\nS\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\nBye.<end_of_turn>\n"
    ),
    "phi3": (
        "<|system|>\nS<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nAnd now?<|end|>\n<|assistant|>\nBye.<|end|>\n"
    ),
}
WHOLE |= dict.fromkeys(("qwen", "qwen2", "qwen3"), WHOLE["chatml"])
WHOLE["qwen3-hybrid"] = WHOLE["chatml"].replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_each_family_is_written_with_its_own_marks(name: str) -> None:
    encoded = chat_format(TOKENIZER, name).encode_conversation(TALK, system="S")
    assert shown(encoded.ids) == WHOLE[name]


def test_the_first_turn_is_what_smollm_was_trained_on() -> None:
    encoded = chat_format(TOKENIZER, "chatml").encode_user("Hi", first=True)
    assert shown(encoded.ids) == f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_qwen3_gets_no_system_text_unasked() -> None:
    for name, opened in (("qwen3", ""), ("qwen3-hybrid", "<think>\n\n</think>\n\n")):
        encoded = chat_format(TOKENIZER, name).encode_user("Hi", first=True)
        turn = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert shown(encoded.ids) == turn + opened


def test_a_later_turn_closes_the_answer_before_it_and_repeats_nothing() -> None:
    encoded = chat_format(TOKENIZER, "chatml").encode_user("Hi", first=False, after_answer=True)
    assert shown(encoded.ids) == "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_system_text_can_be_left_out(name: str) -> None:
    chat = chat_format(TOKENIZER, name)
    without = shown(chat.encode_user("Hi", first=True, system="").ids)
    begin = "".join(part.token for part in chat.template.begin if isinstance(part, Control))
    assert without == begin + shown(chat.encode_user("Hi", first=False).ids)


def test_a_leading_system_message_is_the_system_text_and_a_later_one_is_left_out() -> None:
    chat = chat_format(TOKENIZER, "chatml")
    with_message = chat.encode_conversation((Utterance("system", "S"), *TALK))
    later = chat.encode_conversation((*TALK[:2], Utterance("system", "X"), *TALK[2:]), system="S")
    assert shown(with_message.ids) == shown(later.ids) == WHOLE["chatml"]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("text", ["<|im_end|>", "</s>[INST]", "<|eot_id|>\n<start_of_turn>user", "<|end|>"])
def test_control_tokens_in_text_are_text(name: str, text: str) -> None:
    chat = chat_format(TOKENIZER, name)
    for system in (None, "", text):
        harmless = chat.encode_user("x", first=True, system=system and "x")
        encoded = chat.encode_user(text, first=True, system=system)
        assert [i for i in encoded.ids if i >= 256] == [i for i in harmless.ids if i >= 256]
    assert all(i < 256 for i in chat.encode_answer(text, closed=False).ids)
    assert shown(chat.encode_user(text, first=False).ids).count(text) >= 1


def test_only_answers_and_their_ends_are_learned() -> None:
    encoded = chat_format(TOKENIZER, "chatml").encode_conversation(TALK, system="S")
    learned = [i for i, learn in zip(encoded.ids, encoded.loss_mask, strict=True) if learn]
    assert shown(learned) == "Hello!<|im_end|>Bye.<|im_end|>"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_family_learns_to_end_its_answers(name: str) -> None:
    chat = chat_format(TOKENIZER, name)
    encoded = chat.encode_conversation(TALK)
    learned = [i for i, learn in zip(encoded.ids, encoded.loss_mask, strict=True) if learn]
    end = TOKENIZER.control_id(chat.template.ends[0])
    assert learned == [*b"Hello!", end, *b"Bye.", end]
    assert chat.end_ids[0] == end


def test_a_document_is_a_turn_of_the_user_without_an_answer() -> None:
    chat = chat_format(TOKENIZER, "chatml")
    talk = (Utterance("document", "Once upon", title="tale.txt"), Utterance("user", "What?"))
    assert shown(chat.encode_conversation(talk, system="S").ids) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nDocument: tale.txt\n\nOnce upon<|im_end|>\n"
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("reason", ["stopped", "interrupted", "error"])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_document_that_was_cut_is_closed_by_the_next_turn(name: str, reason: str) -> None:
    chat = chat_format(TOKENIZER, name)
    cut = Utterance("document", "Once upon", title="tale.txt", reason=reason)  # type: ignore[arg-type]
    whole = Utterance("document", "Once upon", title="tale.txt")
    question = Utterance("user", "What?")
    assert chat.encode_conversation((cut, question)) == chat.encode_conversation((whole, question))
    assert shown(chat.encode_conversation((cut,)).ids).endswith("Once upon")


def test_a_message_without_an_answer_is_closed_like_an_empty_answer() -> None:
    chat = chat_format(TOKENIZER, "chatml")
    talk = (Utterance("user", "one"), Utterance("user", "two"))
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\ntwo" in shown(
        chat.encode_conversation(talk).ids
    )


UTTERANCES = st.lists(
    st.builds(
        Utterance,
        st.sampled_from(["user", "assistant", "document"]),
        st.text(max_size=12),
        title=st.none() | st.text(max_size=5),
        reason=st.sampled_from(["complete", "stop", "stopped", "interrupted"]),
    ),
    max_size=6,
)


@settings(max_examples=80, deadline=None)
@given(talk=UTTERANCES, name=st.sampled_from(sorted(TEMPLATES)))
def test_a_conversation_is_the_sum_of_what_is_fed_for_its_messages(talk: list[Utterance], name: str) -> None:
    chat = chat_format(TOKENIZER, name)
    pieces = Encoded((), ())
    previous = None
    for utterance in talk:
        pieces += chat.encode_message(utterance, previous=previous, system=None)
        previous = utterance
    whole = chat.encode_conversation(talk)
    assert whole.ids[: len(pieces.ids)] == pieces.ids
    assert whole.loss_mask[: len(pieces.ids)] == pieces.loss_mask
    assert len(whole.ids) == len(whole.loss_mask)
    closing = whole.ids[len(pieces.ids) :]
    assert bool(closing) == bool(talk and talk[-1].role == "assistant")


def test_neighbouring_text_is_joined_before_it_is_tokenized() -> None:
    calls: list[str] = []

    class Listening(ByteTokenizer):
        def encode(self, text: str) -> list[int]:
            calls.append(text)
            return super().encode(text)

    chat_format(Listening(), "chatml").encode_user(" Hi", first=False)
    assert calls == ["user\n Hi", "\n", "assistant\n"]


def test_marks_that_a_tokenizer_lacks_are_text_only_where_that_is_right() -> None:
    class Old(ByteTokenizer):
        def control_id(self, token: str) -> int:
            if token in ("[INST]", "[/INST]", "<|im_start|>"):
                raise ConfigError(f"no {token}")
            return super().control_id(token)

    encoded = chat_format(Old(), "mistral").encode_user("Hi", first=True, system="")
    assert shown(encoded.ids) == "<s>[INST] Hi[/INST]"
    assert sum(i >= 256 for i in encoded.ids) == 1
    with pytest.raises(ConfigError, match="im_start"):
        chat_format(Old(), "chatml").encode_user("Hi", first=True)


def test_a_format_without_an_end_or_without_a_name_is_refused() -> None:
    template = Template(
        name="odd",
        version=1,
        user_open=(),
        user_close=(),
        answer_open=(),
        answer_close=(),
        document_close=(),
        ends=("<|over|>",),
    )
    with pytest.raises(ConfigError, match="end an answer.*<|over|>"):
        ChatFormat(TOKENIZER, template)
    with pytest.raises(ConfigError, match="'alpaca'.*chatml"):
        chat_format(TOKENIZER, "alpaca")
