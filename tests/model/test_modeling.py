"""The model against the definition, against the base it is made of, and against itself cut differently."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from infinichat.errors import ConfigError, StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.memories import PaperMemory, RecallMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.model.reference_model import Expected, expected
from tests.model.tiny_infini import (
    KINDS,
    VOCABULARY,
    WINDOWS,
    Kind,
    close_memory,
    shut_write_gate,
    some_ids,
    streamed,
    tiny_config,
    tiny_model,
)

LONG = 29
kinds = pytest.mark.parametrize("kind", KINDS)
windows = pytest.mark.parametrize("window", WINDOWS)


def model_of(kind: Kind, window: str, **changes: Any) -> InfiniForCausalLM:
    return tiny_model(memory=kind, **{**WINDOWS[window], **changes})


@cache
def definition(kind: Kind, window: str) -> Expected:
    with torch.no_grad():
        return expected(model_of(kind, window), some_ids(LONG)[0])


# ---- equal to the definition


@kinds
@windows
def test_logits_and_memories_are_the_definition_s(kind: Kind, window: str) -> None:
    model, want = model_of(kind, window), definition(kind, window)
    cache = model.model.new_cache()
    with torch.no_grad():
        logits = model(some_ids(LONG), past_key_values=cache).logits
    torch.testing.assert_close(logits[0], want.logits, rtol=1e-9, atol=1e-9)
    for layer, M in want.M.items():
        torch.testing.assert_close(cache.memories[layer].M[0], M, rtol=1e-9, atol=1e-9)


@kinds
@windows
@pytest.mark.parametrize("length", [1, 8, 11, 12, 13, 15, 16, 17, 24])
def test_prompts_of_whole_segments_and_one_more_or_less_are_the_definition_s(
    kind: Kind, window: str, length: int
) -> None:
    model, want = model_of(kind, window), definition(kind, window)
    ids = some_ids(LONG)
    with torch.no_grad():
        cache = model.model.new_cache()
        prompt = model(ids[:, :length], past_key_values=cache).logits
        after = model(ids[:, length : length + 1], past_key_values=cache).logits
    got = torch.cat((prompt, after), dim=1)[0]
    torch.testing.assert_close(got, want.logits[: length + 1], rtol=1e-9, atol=1e-9)


@kinds
@windows
def test_gradients_are_the_definition_s(kind: Kind, window: str) -> None:
    # Few different tokens, so that a bank follows some of what it read.
    model, ids = model_of(kind, window), some_ids(21) % 4 + 1
    weight = torch.randn(21, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((model(ids).logits[0] * weight).sum(), list(parameters.values()))
    theirs = torch.autograd.grad((expected(model, ids[0]).logits * weight).sum(), list(parameters.values()))
    for name, mine, other in zip(parameters, ours, theirs, strict=True):
        assert bool((other != 0).any()), name
        torch.testing.assert_close(
            mine, other, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_every_grouping_of_heads_is_the_definition_s(kind: Kind, heads: int, kv_heads: int) -> None:
    model = tiny_model(memory=kind, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8)
    ids = some_ids(19)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], expected(model, ids[0]).logits, rtol=1e-9, atol=1e-9)


def test_layers_without_memory_stay_plain() -> None:
    model, ids = tiny_model(memory="delta", memory_layers=[1]), some_ids(19)
    assert model.model.layers[0].memory is None
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], expected(model, ids[0]).logits, rtol=1e-9, atol=1e-9)


# ---- however the input is cut


@kinds
@settings(deadline=None, derandomize=True, max_examples=12)
@given(cuts=st.lists(st.integers(1, LONG - 1), max_size=6))
def test_how_the_input_is_cut_into_calls_changes_nothing(kind: Kind, cuts: list[int]) -> None:
    model, want = model_of(kind, "streaming"), definition(kind, "streaming")
    with torch.no_grad():
        got = streamed(model, some_ids(LONG), sorted(cuts))
    torch.testing.assert_close(got[0], want.logits, rtol=1e-9, atol=1e-9)


@kinds
@windows
def test_one_token_at_a_time_is_the_definition_s(kind: Kind, window: str) -> None:
    model, want = model_of(kind, window), definition(kind, window)
    with torch.no_grad():
        got = streamed(model, some_ids(LONG))
    torch.testing.assert_close(got[0], want.logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 11, LONG, LONG + 5])
def test_keeping_the_last_logits_only_gives_the_last_of_all(keep: int) -> None:
    model, ids = tiny_model(), some_ids(LONG)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, model(ids).logits[:, -keep:])


def test_the_next_logits_come_without_feeding_anything() -> None:
    model, ids = tiny_model(), some_ids(LONG)
    cache = model.model.new_cache()
    with torch.no_grad():
        logits = model(ids, past_key_values=cache).logits
        torch.testing.assert_close(model.next_logits(cache), logits[:, -1])
    assert cache.tokens_seen == LONG


# ---- padding


def padded(rows: list[Tensor], *, left: bool, pad: int = 0) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.int64)
    for i, row in enumerate(rows):
        at = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, at], mask[i, at] = row, 1
    return ids, mask


@kinds
@windows
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padded_rows_are_as_if_alone(kind: Kind, window: str, left: bool) -> None:
    model = model_of(kind, window)
    rows = [some_ids(n, seed=n)[0] for n in (26, 3, 14)]
    ids, mask = padded(rows, left=left)
    cache = model.model.new_cache(3)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, past_key_values=cache).logits
        following = model.next_logits(cache)
        for i, row in enumerate(rows):
            alone = model.model.new_cache()
            want = model(row[None], past_key_values=alone).logits[0]
            torch.testing.assert_close(logits[i][mask[i].bool()], want, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(following[i], want[-1], rtol=1e-9, atol=1e-9)
            for layer, memory in alone.memories.items():
                assert cache.memories[layer].written[i] == memory.written[0]
                torch.testing.assert_close(cache.memories[layer].M[i], memory.M[0], rtol=1e-9, atol=1e-9)


@kinds
def test_turns_of_different_lengths_in_one_batch_are_as_if_alone(kind: Kind) -> None:
    """Padding between two turns of a row: neither positions nor the recall memory's taps may notice it."""
    model = model_of(kind, "streaming")
    talks = [
        [some_ids(n, seed=10 * i + n)[0] for n in turns] for i, turns in enumerate([(9, 2, 17), (3, 12, 5)])
    ]
    cache = model.model.new_cache(2)
    with torch.no_grad():
        wholes = [model(torch.cat(talk)[None]).logits[0] for talk in talks]
        seen = [0, 0]
        for turn in range(3):
            ids, mask = padded([talk[turn] for talk in talks], left=turn != 1)
            logits = model(ids, attention_mask=mask, past_key_values=cache).logits
            for i, talk in enumerate(talks):
                end = seen[i] + len(talk[turn])
                torch.testing.assert_close(
                    logits[i][mask[i].bool()], wholes[i][seen[i] : end], rtol=1e-9, atol=1e-9
                )
                torch.testing.assert_close(
                    model.next_logits(cache)[i], wholes[i][end - 1], rtol=1e-9, atol=1e-9
                )
                seen[i] = end


@kinds
def test_a_row_decodes_beside_a_longer_one_one_token_at_a_time(kind: Kind) -> None:
    model = model_of(kind, "streaming")
    ids, mask = padded([some_ids(5, seed=1)[0], some_ids(11, seed=2)[0]], left=True)
    more = some_ids(20, rows=2, seed=3)
    cache = model.model.new_cache(2)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
        got = [model(more[:, t : t + 1], past_key_values=cache).logits[:, 0] for t in range(20)]
        for row in range(2):
            whole = torch.cat((ids[row][mask[row].bool()], more[row]))
            want = model(whole[None]).logits[0, -20:]
            torch.testing.assert_close(torch.stack([step[row] for step in got]), want, rtol=1e-9, atol=1e-9)


# ---- the base model


def llama_of(config: Any, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(2)
    shared = {
        name: getattr(config, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "max_position_embeddings",
        )
    }
    theta = config.infini_rope["theta"]
    llama = LlamaForCausalLM(
        LlamaConfig(**shared, rope_parameters={"rope_type": "default", "rope_theta": theta}, **changes)
    )
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return llama.eval()


@pytest.mark.parametrize("length", [1, 12])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}, {"rope_theta": 500.0}],
    ids=["tied", "untied", "biases", "theta"],
)
def test_within_the_window_it_is_transformers_llama(length: int, changes: dict[str, Any]) -> None:
    model = tiny_model(dtype=torch.float32, **changes)
    llama = llama_of(model.config)
    missing, unexpected = model.load_state_dict(llama.state_dict(), strict=False)
    assert not unexpected
    assert all(".memory." in name for name in missing)
    ids = some_ids(length, rows=2)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, llama(ids).logits, rtol=1e-4, atol=1e-4)


def twins(kind: Kind, dtype: torch.dtype, **changes: Any) -> tuple[InfiniForCausalLM, InfiniForCausalLM]:
    """A model with memory, and one of the same base weights without."""
    model = tiny_model(memory=kind, dtype=dtype)
    plain = tiny_model(memory=kind, dtype=dtype, **changes)
    base = {name: tensor for name, tensor in model.state_dict().items() if ".memory." not in name}
    plain.load_state_dict(base, strict=False)
    return model, plain


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@kinds
@dtypes
def test_an_empty_memory_is_the_base_model_bit_for_bit(kind: Kind, dtype: torch.dtype) -> None:
    model, plain = twins(kind, dtype, memory_layers=[])
    ids = some_ids(12, rows=2)
    with torch.no_grad():
        assert not torch.equal(model(some_ids(30)).logits, plain(some_ids(30)).logits)
        shut_write_gate(model)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert torch.equal(streamed(model, ids), streamed(plain, ids))


def test_a_bank_holds_a_token_when_the_next_is_read_and_shows_it_to_the_one_after() -> None:
    model, plain = twins("bank", torch.float32, memory_layers=[])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.memory.gate_taps.zero_()
            layer.memory.gate_out.zero_()
            layer.memory.gate_bias.fill_(9)
        cache = model.model.new_cache()
        ours = model(some_ids(5), past_key_values=cache).logits
        assert [int(memory.written) for memory in cache.memories.values()] == [4, 4]
        theirs = plain(some_ids(5)).logits
        assert torch.equal(ours[:, :2], theirs[:, :2])
        assert not torch.isclose(ours[:, 2], theirs[:, 2]).all()


@kinds
@dtypes
def test_a_closed_gate_is_the_base_model_bit_for_bit(kind: Kind, dtype: torch.dtype) -> None:
    model, plain = twins(kind, dtype, memory_layers=[])
    close_memory(model)
    ids = some_ids(40, rows=2)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


@kinds
def test_an_untrained_memory_is_never_made(kind: Kind) -> None:
    model, plain = twins(kind, torch.float32, memory_trained=False)
    close_memory(model)
    cache = plain.model.new_cache()
    with torch.no_grad():
        assert torch.equal(plain(some_ids(40), past_key_values=cache).logits, model(some_ids(40)).logits)
    assert cache.memories == {}


@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_a_new_paper_memory_starts_nearly_closed(kind: Kind) -> None:
    memory = PaperMemory(tiny_config(memory=kind))
    assert 0 < float(torch.sigmoid(memory.beta.detach()).max()) < 0.05


def test_a_new_recall_memory_adds_exactly_nothing() -> None:
    model, plain = twins("recall", torch.float32, memory_layers=[])
    for layer in model.model.layers:
        layer.memory.reset_parameters()
    cache = model.model.new_cache()
    with torch.no_grad():
        assert torch.equal(model(some_ids(40), past_key_values=cache).logits, plain(some_ids(40)).logits)
    assert all(int(memory.written[0]) > 0 for memory in cache.memories.values())


# ---- gradients


@kinds
def test_keys_of_an_earlier_segment_get_a_gradient_through_the_memory(kind: Kind) -> None:
    """Hard segments, one layer: nothing but the memory connects the last segment with the first."""
    model = model_of(kind, "hard", num_hidden_layers=1, memory_layers=[0], tie_word_embeddings=False)
    ids = torch.arange(1, 25)[None]
    logits = model(ids).logits
    grad = torch.autograd.grad(logits[0, -1, 30], model.model.embed_tokens.weight, retain_graph=True)[0]
    assert bool((grad[1:8].abs().amax(dim=1) > 0).any())
    memory = model.model.layers[0].memory
    if isinstance(memory, RecallMemory):
        for parameter in (memory.k_taps, memory.gate_taps):
            assert bool((torch.autograd.grad(logits[0, -1, 30], parameter, retain_graph=True)[0] != 0).any())


@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_the_paper_s_gate_has_a_gradient_at_its_start(kind: Kind) -> None:
    model = model_of(kind, "hard")
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.memory.beta, PaperMemory.BETA_START)
    ids = some_ids(24)
    model(ids, labels=ids).loss.backward()
    for layer in model.model.layers:
        assert bool((layer.memory.beta.grad.abs() > 1e-6).all())


def test_a_new_recall_memory_learns_everything_after_its_first_step() -> None:
    model, ids = model_of("recall", "streaming", memory_layers=[1]), some_ids(40)
    memory = model.model.layers[1].memory
    memory.reset_parameters()
    openers = {"alpha", "confidence", "found_bias"}
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    for name, parameter in memory.named_parameters():
        assert bool((parameter.grad != 0).any()) == (name in openers), name
    optimizer.step()
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    for name, parameter in memory.named_parameters():
        assert bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("trained", ["q_proj", "k_proj", "v_proj"])
def test_one_projection_can_be_trained_alone(trained: str) -> None:
    """Autograd keeps views of frozen keys and values; what is fed later must not overwrite them."""
    model, ids = model_of("delta", "streaming"), some_ids(30)
    weight = model.model.layers[0].self_attn.get_submodule(trained).weight
    (whole,) = torch.autograd.grad(model(ids).logits[0, :, 7].sum(), weight)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is weight)
    streamed(model, ids, [3, 4, 5, 14, 21])[0, :, 7].sum().backward()
    torch.testing.assert_close(weight.grad, whole)


def test_a_detached_state_ends_the_gradient() -> None:
    model, ids = model_of("delta", "hard"), some_ids(24)
    cache = model.model.new_cache()
    model(ids[:, :16], past_key_values=cache)
    cache.detach()
    state = [cache.last_hidden, *(tensor for layer in cache.states for tensor in layer.named().values())]
    assert not any(tensor is not None and tensor.requires_grad for tensor in state)
    model(ids[:, 16:], past_key_values=cache).logits.sum().backward()


def test_the_loss_is_over_all_segments() -> None:
    model, ids = tiny_model(), some_ids(LONG, rows=2)
    labels = ids.clone()
    labels[:, :3] = -100
    with torch.no_grad():
        out = model(ids, labels=labels)
    want = F.cross_entropy(out.logits[:, 2:-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(out.loss, want, check_dtype=False, rtol=1e-5, atol=1e-5)


# ---- types and long runs


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_memories_are_float32_under_half_precision_weights(kind: Kind, dtype: torch.dtype) -> None:
    model = tiny_model(memory=kind, dtype=dtype)
    cache = model.model.new_cache()
    with torch.no_grad():
        logits = model(some_ids(60), past_key_values=cache).logits
        model(some_ids(3), past_key_values=cache)
    assert logits.dtype == dtype
    assert bool(logits.isfinite().all())
    assert cache.states[0].k.content.dtype == dtype
    for memory in cache.memories.values():
        assert memory.M.dtype == torch.float32
        assert memory.z is None or memory.z.dtype == torch.float32


def test_bfloat16_follows_float32() -> None:
    exact, model = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    with torch.no_grad():
        difference = model(some_ids(60)).logits.float() - exact(some_ids(60)).logits
    assert difference.abs().mean() < 0.05 * exact(some_ids(60)).logits.std()


# ---- what is refused


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.ones(5, dtype=torch.int64), r"input_ids is torch.int64 \(5,\); expected"),
        (torch.ones(1, 0, dtype=torch.int64), r"\(1, 0\); expected"),
        (torch.ones(1, 4), r"input_ids is torch.float32 \(1, 4\); expected whole numbers"),
        (
            torch.tensor([[3, VOCABULARY]]),
            f"input_ids go from 3 to {VOCABULARY}; .* ids 0 to {VOCABULARY - 1}",
        ),
        (torch.tensor([[-1, 3]]), "input_ids go from -1 to 3"),
    ],
)
def test_bad_ids_are_refused_with_what_was_got_and_expected(ids: Tensor, words: str) -> None:
    with pytest.raises(StateError, match=words):
        tiny_model()(ids)


def test_bad_masks_and_states_are_refused_with_what_was_got_and_expected() -> None:
    model, ids = tiny_model(), some_ids(4, rows=2)
    with pytest.raises(StateError, match=r"attention_mask has shape \(2, 3\); expected \[2, 4 or more\]"):
        model(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(StateError, match="input_ids has 2 rows and the state 1"):
        model(ids, past_key_values=model.model.new_cache(1))
    with pytest.raises(StateError, match="past_key_values is a list"):
        model(ids, past_key_values=[])
    with pytest.raises(StateError, match=r"The state is torch.float32 and the weights torch.float64"):
        model(ids, past_key_values=InfiniCache(model.config, 2))
    with pytest.raises(StateError, match="made with window 24; this model has 12"):
        model(ids, past_key_values=InfiniCache(tiny_config(window=24), 2, dtype=torch.float64))
    with pytest.raises(StateError, match="seen 0 tokens"):
        model.next_logits(model.model.new_cache())


@pytest.mark.parametrize(
    "argument",
    [
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"return_dict": False},
        {"labls": torch.ones(1)},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_what_is_not_supported_is_said_and_not_ignored(argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(argument))} was given"):
        tiny_model()(some_ids(3), **argument)


def test_embeddings_instead_of_ids_are_refused() -> None:
    with pytest.raises(ConfigError, match="inputs_embeds was given"):
        tiny_model()(inputs_embeds=torch.randn(1, 3, 32))
    with pytest.raises(ConfigError, match="input_ids is None"):
        tiny_model()()


def test_a_refused_call_leaves_the_state_as_it_was() -> None:
    model, ids = tiny_model(), some_ids(20)
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
        before = cache.to_tensors()
        for bad in (torch.ones(1, 0, dtype=torch.int64), torch.full((1, 3), VOCABULARY)):
            with pytest.raises(StateError):
                model(bad, past_key_values=cache)
        follow = model(ids[:, :1], past_key_values=cache).logits
        other = InfiniCache.from_tensors(model.config, before)
        torch.testing.assert_close(model(ids[:, :1], past_key_values=other).logits, follow)
