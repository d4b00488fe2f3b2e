"""Text to token ids and back, over the ``tokenizers`` package.

A tokenizer is made from one definition, the dictionary that a ``tokenizer.json`` holds: read from a Hugging
Face folder, or written by ``gguf_tokenizer.py`` from a GGUF's metadata. Two pipelines come out of it. The
*text path* has no control tokens at all: they are neither matched in a text nor in the vocabulary, so a
user's ``<|im_end|>`` is split like any other text and no input can ever yield a control id. The complete one
is only for users of transformers (``as_transformers``).

It knows no chat format: ``chat_format.py`` asks for control ids by name and puts them between texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers.models import BPE

from infinichat.errors import ConfigError, ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Added tokens that are not flagged as special but steer a model all the same: <think>, <tool_call>, [INST].
_MARKER = re.compile(r"<\|.*\|>|<[A-Za-z0-9_/:-]+>|\[/?[A-Z_]+\]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPM_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens with a part to play, by text, each ``None`` when the model names none."""

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    pad: str | None = None


class Tokenizer:
    """Implements ``protocols.TextTokenizer``. Immutable and safe to share between threads."""

    def __init__(
        self,
        definition: Mapping[str, Any],
        special: SpecialTokens | None = None,
        *,
        chat_template: str | None = None,
        unused: frozenset[str] = frozenset(),
    ) -> None:
        """``definition`` is a parsed ``tokenizer.json``; ``unused`` names vocabulary entries that only pad
        it.

        Raises ``UnsupportedModelError`` for anything but byte-level BPE and SentencePiece BPE with byte
        fallback, ``ModelFileError`` when the definition contradicts itself.
        """
        self.special = special or SpecialTokens()
        self.chat_template = chat_template
        self._byte_level = _is_byte_level(definition)
        vocabulary: Mapping[str, int] = definition["model"]["vocab"]
        added = {token["content"]: token for token in definition.get("added_tokens") or ()}
        ids: dict[str, int] = {**vocabulary, **{text: int(token["id"]) for text, token in added.items()}}
        unknown = definition["model"].get("unk_token")
        hidden = {text for text, token in added.items() if token.get("special")} | unused
        if unknown is not None:
            hidden.add(unknown)
        # Old converters do not flag <s> and </s>; whoever plays such a part is not text.
        roles = {self.special.bos, self.special.eos, self.special.unk, self.special.pad}
        hidden |= {text for text in roles if text is not None and (text in added or _MARKER.fullmatch(text))}
        markers = {text for text in added if text not in hidden and _MARKER.fullmatch(text)}
        self._control = {text: ids[text] for text in hidden | markers if text in ids}
        self._control_names = {token_id: text for text, token_id in self._control.items()}
        self._size = max(ids.values()) + 1
        self._hidden = frozenset(ids[text] for text in hidden if text in ids)
        self._verbatim = frozenset(ids[text] for text in added)
        self._bytes: dict[int, bytes] = {}
        self._strips_space = not self._byte_level and _prepends_space(definition)
        self._text = _build(_text_only(definition, frozenset(self._control), frozenset(added)))
        self._fingerprint = _fingerprint(definition)
        # Vocabulary and merges are in the pipeline: here is what it lacks (18 MB less for 49,152 tokens).
        self._frame = _framed(definition)
        self._aside = {text: vocabulary[text] for text in self._control if text in vocabulary}
        self._own = frozenset(text for text in added if text not in vocabulary)
        self._aside_merges = [
            (place, pair)
            for place, pair in enumerate(_merges(definition["model"]))
            if _touches(pair, self._control)
        ]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's embedding has at least so many rows."""
        return self._size

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Every token that a text can never become, with its id."""
        return dict(self._control)

    @property
    def bos_id(self) -> int | None:
        return self._control.get(self.special.bos) if self.special.bos else None

    @property
    def eos_id(self) -> int | None:
        return self._control.get(self.special.eos) if self.special.eos else None

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, none of them a control token. Characters of which the vocabulary lacks a byte (for
        SmolLM2: six control characters and unassigned planes) are dropped, as the original tokenizer does."""
        return list(self._text.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; control tokens give nothing, bytes that are no UTF-8 give U+FFFD. Where
        ``encode`` puts a space before the text (SentencePiece), one leading space is taken off again."""
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._strips_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this id stands for: ``b""`` for control tokens and for ids past the vocabulary
        (embeddings are often padded). Joined over all ids they are the UTF-8 of the text."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._bytes_of(token_id)
        return known

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id < 0 or token_id in self._hidden:
            return b""
        text = self._control_names.get(token_id) or self._text.id_to_token(token_id)
        if text is None:
            return b""
        if token_id in self._verbatim:
            return text.encode()
        if self._byte_level:
            table = _byte_of_character()
            # A character outside the table only occurs in tokens that were added without being declared so.
            return b"".join(table.get(character) or character.encode() for character in text)
        if byte := _BYTE.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace(_SPM_SPACE, " ").encode()

    def control_id(self, token: str) -> int:
        """Id of a control token; raises ``ConfigError`` naming the ones there are."""
        try:
            return self._control[token]
        except KeyError:
            some = ", ".join(sorted(self._control)[:8]) or "none"
            raise ConfigError(
                f"The tokenizer has no control token {token!r}; it has {some}. Choose a chat format that "
                "fits the model."
            ) from None

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the whole definition: vocabulary, merges, pre-tokenizer, added tokens."""
        return self._fingerprint

    @property
    def definition(self) -> Mapping[str, Any]:
        """The parsed ``tokenizer.json`` that this was made from, put together anew."""
        vocabulary = {**self._text.get_vocab(with_added_tokens=True), **self._aside}
        merges = _merges(json.loads(self._text.to_str())["model"])
        for place, pair in self._aside_merges:
            merges.insert(place, pair)
        model = {
            **self._frame["model"],
            "vocab": {text: token_id for text, token_id in vocabulary.items() if text not in self._own},
            "merges": merges,
        }
        return {**self._frame, "model": model}

    def as_transformers(self) -> PreTrainedTokenizerFast:
        """The complete tokenizer, control tokens included, for transformers' ``generate`` and pipelines.
        Unlike ``encode`` it does turn ``<|im_end|>`` in a text into the control token."""
        from transformers import PreTrainedTokenizerFast

        names = {
            f"{role}_token": text
            for role in ("bos", "eos", "unk", "pad")
            if (text := getattr(self.special, role)) is not None
        }
        make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # untyped upstream
        return make(
            tokenizer_object=_build(self.definition),
            chat_template=self.chat_template,
            clean_up_tokenization_spaces=False,
            **names,
        )


def folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: ``tokenizer.json``, with the roles of its special tokens and
    the chat template from ``tokenizer_config.json`` and ``chat_template.jinja`` where they exist.

    Raises ``ModelFileError`` for a missing or unreadable file, ``UnsupportedModelError`` as ``Tokenizer``
    does.
    """
    file = folder / "tokenizer.json"
    definition = _read_json(file)
    model = definition.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedModelError(
            f"{file} holds a tokenizer of type {kind!r}; byte-level BPE and SentencePiece BPE are supported."
        )
    settings = folder / "tokenizer_config.json"
    config = _read_json(settings) if settings.exists() else {}
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text("utf-8") if template_file.exists() else config.get("chat_template")
    if isinstance(template, list):  # several named templates: the one for chat is called "default"
        template = next((item.get("template") for item in template if item.get("name") == "default"), None)
    roles = {role: _token_text(config.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")}
    try:
        return Tokenizer(definition, SpecialTokens(**roles), chat_template=template)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{file} is not a complete tokenizer ({type(error).__name__}: {error}). Get the file again."
        ) from error


def _token_text(value: object) -> str | None:
    """A special token in ``tokenizer_config.json`` is a string or a dictionary with its ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(f"{file} is missing. Copy it from where the model came from.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"Cannot read {file}: {error}. Get the file again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(
            f"{file} holds a {type(value).__name__}, expected an object. Get the file again."
        )
    return value


def _framed(definition: Mapping[str, Any]) -> dict[str, Any]:
    """``definition`` without vocabulary and merges."""
    return {**definition, "model": {**definition["model"], "vocab": None, "merges": None}}


def _fingerprint(definition: Mapping[str, Any]) -> str:
    model = definition["model"]
    digest = hashlib.sha256(b"infinichat-tokenizer-1\0")
    digest.update(json.dumps(_framed(definition), sort_keys=True).encode())
    vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
    # Length-prefixed lists, so that no text can pass for the border between two others.
    for texts in ([text for text, _ in vocabulary], [part for pair in _merges(model) for part in pair]):
        digest.update(b"".join(b"%d:%b" % (len(raw), raw) for raw in map(str.encode, texts)))
    digest.update(b",".join(b"%d" % token_id for _, token_id in vocabulary))
    return digest.hexdigest()


def _touches(pair: tuple[str, str], control: Container[str]) -> bool:
    """Whether a merge is of a control token, or makes one."""
    left, right = pair
    return left in control or right in control or left + right in control


def _text_only(
    definition: Mapping[str, Any], control: frozenset[str], added: frozenset[str]
) -> dict[str, Any]:
    """``definition`` without its control tokens: not in the vocabulary, in no merge, not added, not prefixed
    by a post-processor, not standing in for what is unknown."""
    model = dict(definition["model"])
    ids = {token["content"]: token["id"] for token in definition.get("added_tokens") or ()}
    # Added tokens that stay are put into the vocabulary, so that they keep their ids.
    model["vocab"] = {
        text: token_id for text, token_id in {**model["vocab"], **ids}.items() if text not in control
    }
    model["unk_token"] = None
    model["merges"] = [pair for pair in _merges(model) if not _touches(pair, control)]
    kept = [
        {**token, "special": False}
        for token in definition.get("added_tokens") or ()
        if token["content"] in added - control
    ]
    return {
        **definition,
        "model": model,
        "added_tokens": kept,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _build(definition: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The pipeline of a definition. The vocabulary goes in as it is rather than through JSON, which takes
    half as long for SmolLM2's 49,152 tokens; added tokens are part of it, so that they keep their ids."""
    model, added = definition["model"], definition.get("added_tokens") or ()
    frame = {**definition, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    known = ("byte_fallback", "ignore_merges", "fuse_unk", "dropout", "unk_token")
    options = {key: model[key] for key in (*known, *_AFFIXES) if model.get(key) is not None}
    vocabulary = {**model["vocab"], **{token["content"]: int(token["id"]) for token in added}}
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(frame))
        built.model = BPE(vocab=vocabulary, merges=_merges(model), **options)
    except Exception as error:  # tokenizers raises bare Exception for everything its Rust side refuses
        raise ModelFileError(
            f"The tokenizer contradicts itself ({error}). Get the model's tokenizer files again."
        ) from error
    for special in (True, False):
        tokens = [_added_token(token) for token in added if bool(token.get("special")) == special]
        (built.add_special_tokens if special else built.add_tokens)(tokens)
    return built


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def _added_token(token: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = {key: bool(token.get(key)) for key in ("single_word", "lstrip", "rstrip", "special")}
    return tokenizers.AddedToken(token["content"], normalized=bool(token.get("normalized", True)), **flags)


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write each as one text."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _parts(definition: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with sequences laid flat."""
    step = definition.get(role)
    if not step:
        return []
    if step.get("type") == "Sequence":
        return list(step.get(f"{role}s") or step.get("pretokenizers") or step.get("decoders") or [])
    return [step]


def _is_byte_level(definition: Mapping[str, Any]) -> bool:
    model = definition["model"]
    steps = [*_parts(definition, "pre_tokenizer"), *_parts(definition, "decoder")]
    byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    if model.get("type", "BPE") != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise UnsupportedModelError(
            f"The tokenizer is of type {model.get('type')!r} without byte-level splitting or byte fallback; "
            "byte-level BPE and SentencePiece BPE are supported."
        )
    return byte_level


def _prepends_space(definition: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "Prepend" for step in _parts(definition, "normalizer")) or any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in _parts(definition, "pre_tokenizer")
    )


@cache
def _byte_of_character() -> dict[str, bytes]:
    """Byte-level BPE writes each byte as a printable character (GPT-2's rule: printable Latin-1 stands for
    itself, the other bytes follow from U+0100 upwards); this is the way back."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): bytes([byte]) for byte in plain}
    return table | {chr(0x100 + at): bytes([byte]) for at, byte in enumerate(others)}
