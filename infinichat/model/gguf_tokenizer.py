"""A GGUF's tokenizer metadata as the definition that ``tokenizer.Tokenizer`` takes.

A GGUF holds the vocabulary, the kind of each token and, for byte-level BPE, the merges; how a text is split
before merging is only named (``tokenizer.ggml.pre``), so the regular expressions are here, in a table. The
default checkpoint's is ``smollm``: digits are split off one by one first, then GPT-2's expression splits what
is left; the order matters wherever blanks or newlines stand before a digit. SentencePiece vocabularies
(``tokenizer.ggml.model = llama``) have scores instead of merges; the merges follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf_file import GgufFile
from infinichat.model.tokenizer import SpecialTokens, Tokenizer

# llama.cpp's kinds of token.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ONE_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Expressions applied one after another, each to the pieces of the one before. Sources: the models' own
# tokenizer.json files and llama.cpp's list of pre-tokenizers.
_SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",),
    "tekken": (rf"{_ONE_PREFIX}{_UPPER}*{_LOWER}+|{_ONE_PREFIX}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_REST}",),
    "gpt-4o": (
        rf"{_ONE_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_ONE_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_CASED_REST}",
    ),
    "seed-coder": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
_ALIASES = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "smaug-bpe", "dbrx"),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "roberta-bpe"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez"),
    "gpt-4o": ("llama4",),
}
_PRE = {name: name for name in _SPLITS} | {
    alias: name for name, aliases in _ALIASES.items() for alias in aliases
}
# Vocabularies in which a whole piece that is a token is that token, whatever the merges would make of it.
_WHOLE_PIECES = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
)


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer in ``file``'s metadata.

    Raises ``UnsupportedModelError`` naming a tokenizer model or pre-tokenizer that is not in the table,
    ``ModelFileError`` when the metadata is missing or contradicts itself.
    """
    tokens = _list(file, "tokens", str)
    kinds = _list(file, "token_type", int) if "tokenizer.ggml.token_type" in file.metadata else []
    kinds = kinds or [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise ModelFileError(
            f"{file.path.name} has {len(kinds)} token types for {len(tokens)} tokens. Get the file again."
        )
    model = file.metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        definition = _byte_level(file, tokens)
    elif model == "llama":
        definition = _sentencepiece(file, tokens)
    else:
        raise UnsupportedModelError(
            f"{file.path.name} has a tokenizer of model {model!r}; 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece BPE) are supported."
        )
    definition["added_tokens"] = _added(tokens, kinds)
    unused = frozenset(text for text, kind in zip(tokens, kinds, strict=True) if kind in (_UNUSED, _UNKNOWN))
    return Tokenizer(
        definition,
        _special_tokens(file, tokens),
        chat_template=file.metadata.get("tokenizer.chat_template"),
        unused=unused,
    )


def _list(file: GgufFile, key: str, kind: type) -> list[Any]:
    values = file.metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values or not isinstance(values[0], kind):
        raise ModelFileError(
            f"{file.path.name} has no usable tokenizer.ggml.{key}. Use a GGUF that contains its tokenizer."
        )
    return values


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for token_id, text in enumerate(tokens):
        vocabulary.setdefault(text, token_id)  # padding may repeat a text; the first one is the real one
    return vocabulary


def _added(tokens: Sequence[str], kinds: Sequence[int]) -> list[dict[str, Any]]:
    """Control and user-defined tokens in the form of ``tokenizer.json``."""
    return [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for token_id, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _special_tokens(file: GgufFile, tokens: Sequence[str]) -> SpecialTokens:
    def text(key: str) -> str | None:
        token_id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            return None
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise ModelFileError(
                f"{file.path.name} has {key} token id {token_id!r}, expected 0 to {len(tokens) - 1}. Get the "
                "file again."
            )
        return tokens[token_id]

    return SpecialTokens(text("bos"), text("eos"), text("unknown"), text("padding"))


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    pre = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if pre not in _PRE:
        raise UnsupportedModelError(
            f"{file.path.name} splits text by {pre!r} (tokenizer.ggml.pre), which is not known here; known "
            f"are {', '.join(sorted(_PRE))}. Use the Hugging Face folder of the same model."
        )
    merges = []
    for merge in _list(file, "merges", str):
        left, space, right = merge[1:].partition(" ")  # a merge's first character is never the separator
        if not space:
            raise ModelFileError(
                f"{file.path.name} has the merge {merge!r}, expected two parts. Get the file again."
            )
        merges.append((merge[0] + left, right))
    return {
        "version": "1.0",
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizer(_PRE[pre])},
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_PIECES,
            "vocab": _vocabulary(tokens),
            "merges": merges,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    }


def _pre_tokenizer(name: str) -> list[dict[str, Any]]:
    if name == "smollm":
        # What SmolLM2's own tokenizer.json says; Digits takes every character of category N, like \p{N}.
        digits = {"type": "Digits", "individual_digits": True}
        return [
            digits,
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in _SPLITS[name]
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return [*steps, last]


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    scores = _list(file, "scores", float)
    if len(scores) != len(tokens):
        raise ModelFileError(
            f"{file.path.name} has {len(scores)} scores for {len(tokens)} tokens. Get the file again."
        )
    spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prefix = [{"type": "Prepend", "prepend": "\u2581"}]
    first = prefix if file.metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    vocabulary = _vocabulary(tokens)
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*first, spaces]},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges_from_scores(vocabulary, scores),
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if first else []),
            ],
        },
    }


def _merges_from_scores(vocabulary: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose joined piece has the highest score: every way to cut a piece into
    two pieces is a merge, ranked by the score of the whole, then by where its parts stand in the
    vocabulary."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, token_id in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[token_id], vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]
