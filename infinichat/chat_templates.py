"""How each family of models writes a conversation: its marks, and where they stand. What they become is
``chat_format.py``'s."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by name. With ``or_text`` a tokenizer that lacks it gets the name as text."""

    token: str
    or_text: bool = False


Part = str | Control
Parts = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """How one family of models writes a conversation.

    ``begin`` comes once. With an empty ``system_open`` the family has no system turn: the system text goes
    into the first user turn, between ``fold_open`` and ``fold_close``. ``document_close`` ends a user turn
    that gets no answer. The first of ``ends`` is what training teaches an answer to end with.
    """

    name: str
    version: int
    user_open: Parts
    user_close: Parts
    answer_open: Parts
    answer_close: Parts
    document_close: Parts
    ends: tuple[str, ...]
    begin: Parts = ()
    system_open: Parts = ()
    system_close: Parts = ()
    fold_open: str = ""
    fold_close: str = "\n\n"
    default_system: str | None = None

    @property
    def id(self) -> str:
        """Name and version: part of what a saved state is bound to."""
        return f"{self.name}-{self.version}"


def _chatml(name: str, default_system: str | None, *, thought: Parts = ()) -> Template:
    start, end = Control("<|im_start|>"), Control("<|im_end|>")
    return Template(
        name=name,
        version=1,
        system_open=(start, "system\n"),
        system_close=(end, "\n"),
        user_open=(start, "user\n"),
        user_close=(end, "\n"),
        answer_open=(start, "assistant\n", *thought),
        answer_close=(end, "\n"),
        document_close=(end, "\n"),
        ends=("<|im_end|>", "<|endoftext|>"),
        default_system=default_system,
    )


# With an empty thought a hybrid Qwen3 answers at once.
_NO_THOUGHT: Parts = (Control("<think>", or_text=True), "\n\n", Control("</think>", or_text=True), "\n\n")


def _llama3() -> Template:
    start, stop, end = Control("<|start_header_id|>"), Control("<|end_header_id|>"), Control("<|eot_id|>")
    return Template(
        name="llama3",
        version=1,
        begin=(Control("<|begin_of_text|>"),),
        system_open=(start, "system", stop, "\n\n"),
        system_close=(end,),
        user_open=(start, "user", stop, "\n\n"),
        user_close=(end,),
        answer_open=(start, "assistant", stop, "\n\n"),
        answer_close=(end,),
        document_close=(end,),
        ends=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    )


# The turn marks of Llama 2 are plain text and every user turn begins a new sequence.
_LLAMA2 = Template(
    name="llama2",
    version=1,
    fold_open="<<SYS>>\n",
    fold_close="\n<</SYS>>\n\n",
    user_open=(Control("<s>"), "[INST] "),
    user_close=(" [/INST]",),
    answer_open=(),
    answer_close=(Control("</s>"),),
    document_close=(" [/INST]", Control("</s>")),
    ends=("</s>",),
)

# [INST] is a control token since version 3 of the tokenizer and plain text before.
_MISTRAL = Template(
    name="mistral",
    version=1,
    begin=(Control("<s>"),),
    user_open=(Control("[INST]", or_text=True), " "),
    user_close=(Control("[/INST]", or_text=True),),
    answer_open=(),
    answer_close=(Control("</s>"),),
    document_close=(Control("[/INST]", or_text=True), Control("</s>")),
    ends=("</s>",),
)


def _gemma() -> Template:
    start, end = Control("<start_of_turn>"), Control("<end_of_turn>")
    return Template(
        name="gemma",
        version=1,
        begin=(Control("<bos>"),),
        user_open=(start, "user\n"),
        user_close=(end, "\n"),
        answer_open=(start, "model\n"),
        answer_close=(end, "\n"),
        document_close=(end, "\n"),
        ends=("<end_of_turn>", "<eos>"),
    )


def _phi3() -> Template:
    end = Control("<|end|>")
    return Template(
        name="phi3",
        version=1,
        system_open=(Control("<|system|>"), "\n"),
        system_close=(end, "\n"),
        user_open=(Control("<|user|>"), "\n"),
        user_close=(end, "\n"),
        answer_open=(Control("<|assistant|>"), "\n"),
        answer_close=(end, "\n"),
        document_close=(end, "\n"),
        ends=("<|end|>", "<|endoftext|>"),
    )


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _chatml("chatml", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        _chatml("qwen", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        _chatml("qwen2", "You are a helpful assistant."),
        _chatml("qwen3", None),
        _chatml("qwen3-hybrid", None, thought=_NO_THOUGHT),
        _llama3(),
        _LLAMA2,
        _MISTRAL,
        _gemma(),
        _phi3(),
    )
}
"""By name. "chatml" is SmolLM2's; "qwen" (Qwen2.5), "qwen2" and "qwen3" are the same marks with their own
default system text, or none."""
