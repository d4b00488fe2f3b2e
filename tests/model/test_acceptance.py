"""Twelve properties that other implementations of Infini-attention lack, one test each.

Each stands for a fault that was found by running them: heads cut across time, attention that sees the future,
a memory that generation does not read, padding that is written, gates that cannot move. Details and variants
are tested elsewhere in this folder; here each property is seen once, on the whole model.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infinichat.errors import StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.memories import PaperMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.model.reference_model import expected
from tests.model.tiny_infini import (
    HARD,
    KINDS,
    MARK,
    VOCABULARY,
    WINDOWS,
    Kind,
    close_memory,
    recalling_model,
    shut_write_gate,
    some_ids,
    streamed,
    tiny_config,
    tiny_model,
)

kinds = pytest.mark.parametrize("kind", KINDS)
windows = pytest.mark.parametrize("window", WINDOWS)


@kinds
def test_01_equals_the_definition_in_float64_with_heads_groups_and_a_ragged_end(kind: Kind) -> None:
    model, ids = tiny_model(memory=kind, **HARD), some_ids(27)
    assert model.config.num_attention_heads > model.config.num_key_value_heads > 1
    assert ids.shape[1] % model.config.segment
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids).logits[0], expected(model, ids[0]).logits, rtol=1e-10, atol=1e-10
        )


@kinds
@windows
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_02_nothing_later_changes_anything_earlier(kind: Kind, window: str, masked: bool) -> None:
    model, length = tiny_model(memory=kind, **WINDOWS[window]), 26
    ids = some_ids(length).repeat(length, 1)
    changed = ids.clone()
    changed.diagonal().copy_(1 + ids.diagonal() % (VOCABULARY - 1))  # row i differs at position i
    mask = torch.ones_like(ids) if masked else None
    with torch.no_grad():
        before, after = (model(rows, attention_mask=mask).logits for rows in (ids, changed))
    # Rows of a batch share products of matrices, whose last bits depend on the shape: hence not bit for bit.
    difference = (after - before).abs().amax(dim=-1)
    for position in range(length):
        assert bool((difference[position, :position] < 1e-12).all()), position
        assert float(difference[position, position]) > 1e-3, position


@kinds
def test_03_the_first_segment_reaches_the_third_through_every_head(kind: Kind) -> None:
    """One layer and hard segments, so that only the memory can carry it; each head is looked at alone."""
    model, ids = tiny_model(memory=kind, num_hidden_layers=1, memory_layers=[0], **HARD), some_ids(24)
    changed = ids.clone()
    changed[0, 2] = 1 + ids[0, 2] % (VOCABULARY - 1)
    layer = model.model.layers[0]
    own = kind in ("recall", "bank")  # these add their read to the residual by a projection of their own
    projection = layer.memory.out if own else layer.self_attn.o_proj.weight
    heads, original = model.config.num_attention_heads, projection.detach().clone()
    with torch.no_grad():
        for head in range(heads):
            width = original.shape[1] // heads
            alone = torch.zeros_like(original)
            alone[:, head * width : (head + 1) * width] = original[:, head * width : (head + 1) * width]
            projection.copy_(alone)
            # Half open everywhere, for a bank's reads act only where it opens.
            for name in ("confidence", "read_confidence", "adapt_out", "carry"):
                if hasattr(layer.memory, name):
                    getattr(layer.memory, name).zero_()
            difference = (model(ids).logits - model(changed).logits)[0].abs().amax(dim=-1)
            assert bool((difference[16:] > 0).all()), head
        close_memory(model)
        assert torch.equal(model(ids).logits[:, 8:], model(changed).logits[:, 8:])


@kinds
@windows
@pytest.mark.parametrize("off", [-1, 0, 1])
def test_04_one_shot_streaming_turns_and_generation_agree_at_segment_ends(
    kind: Kind, window: str, off: int
) -> None:
    model = tiny_model(memory=kind, **WINDOWS[window])
    prompt = 2 * model.config.window + off
    ids = some_ids(prompt)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    generated = torch.stack(out.logits, dim=1)
    whole = out.sequences[:, :-1]
    with torch.no_grad():
        one_shot = model(whole).logits
        torch.testing.assert_close(generated, one_shot[:, prompt - 1 :].to(generated), rtol=1e-5, atol=1e-5)
        for cuts in (None, [prompt], [5, prompt - 1, prompt + 3]):
            torch.testing.assert_close(streamed(model, whole, cuts), one_shot, rtol=1e-9, atol=1e-9)


@kinds
@windows
def test_05_padding_leaves_memories_and_outputs_bit_identical(kind: Kind, window: str) -> None:
    model = tiny_model(memory=kind, dtype=torch.float32, **WINDOWS[window])
    ids, mask = some_ids(37, rows=3), torch.ones(3, 37, dtype=torch.int64)
    mask[1, :20] = mask[2, 7:15] = 0
    results = []
    for content in (0, 17):
        cache = model.model.new_cache(3)
        with torch.no_grad():
            filled = torch.where(mask.bool(), ids, content)
            logits = model(filled, attention_mask=mask, past_key_values=cache).logits
            follow = model(some_ids(5, rows=3, seed=2), past_key_values=cache).logits
        tensors = [t for m in cache.memories.values() for t in (m.M, m.z, m.written) if t is not None]
        results.append([logits[mask.bool()], follow, *tensors])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@kinds
def test_06_an_empty_memory_and_a_closed_gate_are_the_base_model_exactly(kind: Kind) -> None:
    model = tiny_model(memory=kind, dtype=torch.float32)
    plain = tiny_model(memory=kind, dtype=torch.float32, memory_layers=[])
    base = {name: tensor for name, tensor in model.state_dict().items() if ".memory." not in name}
    plain.load_state_dict(base)
    inside, beyond = some_ids(model.config.window), some_ids(60)
    with torch.no_grad():
        assert not torch.equal(model(beyond).logits, plain(beyond).logits)
        shut_write_gate(model)
        assert torch.equal(model(inside).logits, plain(inside).logits)
        close_memory(model)
        assert torch.equal(model(beyond).logits, plain(beyond).logits)


@kinds
@windows
def test_07_saved_and_loaded_is_never_stopped_and_a_saved_state_never_changes(
    kind: Kind, window: str, tmp_path: Path
) -> None:
    model, ids, more = tiny_model(memory=kind, **WINDOWS[window]), some_ids(29), some_ids(21, seed=4)
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
        saved = cache.to_tensors()
        save_file(saved, tmp_path / "state.safetensors")
        never_stopped = model(more, past_key_values=cache).logits
        on_disk = load_file(tmp_path / "state.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in on_disk.items())
        again = tiny_model(memory=kind, **WINDOWS[window])
        loaded = InfiniCache.from_tensors(again.config, on_disk)
        assert torch.equal(again(more, past_key_values=loaded).logits, never_stopped)
    with pytest.raises(StateError):
        InfiniCache.from_tensors(tiny_config(memory=kind, window=24, segment=8), on_disk)


def soak(model: InfiniForCausalLM, cache: InfiniCache, tokens: int, ids: Tensor) -> float:
    """Feed ``tokens`` ids; the smallest time of a single step right after them, in seconds."""
    with torch.no_grad():
        for _ in range(-(-tokens // ids.shape[1])):
            model(ids, past_key_values=cache, logits_to_keep=1)
        times = []
        for t in range(60):
            start = time.perf_counter()
            out = model(ids[:, t : t + 1], past_key_values=cache)
            times.append(time.perf_counter() - start)
            assert bool(out.logits.isfinite().all())
    return min(times)


@pytest.mark.parametrize("kind", ["recall", "delta"])
def test_08_a_long_soak_under_bfloat16_weights_stays_finite_with_float32_sums(kind: Kind) -> None:
    """More tokens than float16 sums survive (57 thousand); a million go through the memories' own tests."""
    model = tiny_model(
        memory=kind,
        dtype=torch.bfloat16,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        memory_layers=[0],
        window=256,
        segment=256,
    )
    cache = model.model.new_cache()
    soak(model, cache, 60_000, some_ids(2560))
    memory = cache.memories[0]
    assert memory.M.dtype == torch.float32
    assert memory.written.item() > 20_000
    assert all(bool(t.isfinite().all()) for t in (memory.M, memory.z) if t is not None)


@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_09_gates_start_where_they_can_learn(kind: Kind) -> None:
    """Elsewhere sigmoid(-100) has a gradient of exactly zero; here a few steps move the gate."""
    model, ids = tiny_model(memory=kind, **HARD), some_ids(24)
    betas = [layer.memory.beta for layer in model.model.layers]
    for beta in betas:
        torch.nn.init.constant_(beta, PaperMemory.BETA_START)
    optimizer = torch.optim.Adam(betas, lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        assert all(bool((beta.grad != 0).all()) for beta in betas)
        optimizer.step()
    moved = torch.cat([torch.sigmoid(beta.detach()) for beta in betas])
    assert (moved - torch.sigmoid(torch.tensor(PaperMemory.BETA_START))).abs().max() > 0.05


def passkey(rng: random.Random, *, length: int, depth: float) -> tuple[list[int], list[int]]:
    """Filler with one marked key of two tokens at ``depth``, then the mark again: (prompt, key)."""
    allowed = [token for token in range(VOCABULARY) if token not in MARK]
    key = rng.sample(allowed, 2)
    filler = [rng.choice(allowed) for _ in range(length)]
    at = round(depth * length)
    return [*filler[:at], *MARK, *key, *filler[at:], *MARK], key


def found(model: InfiniForCausalLM, *, length: int, depth: float, samples: int, seed: int) -> float:
    """Share of keys that greedy generation from the streamed prompt repeats exactly."""
    rng = random.Random(f"{seed}-{length}-{depth}")
    asked = [passkey(rng, length=length, depth=depth) for _ in range(samples)]
    ids = torch.tensor([prompt for prompt, _ in asked])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    answers = out[:, -2:].tolist()
    return sum(answer == key for answer, (_, key) in zip(answers, asked, strict=True)) / samples


def test_10_without_its_memory_or_with_another_s_the_answer_is_gone() -> None:
    on, off = recalling_model(), recalling_model(memory_trained=False)
    for depth in (0.1, 0.5):
        assert found(on, length=200, depth=depth, samples=10, seed=1) == 1
        assert found(off, length=200, depth=depth, samples=10, seed=1) <= 0.2
    rng = random.Random(3)
    prompt, key = passkey(rng, length=200, depth=0.3)
    other, other_key = passkey(rng, length=200, depth=0.3)
    assert key != other_key
    with torch.no_grad():
        mine, theirs = on.model.new_cache(), on.model.new_cache()
        on(torch.tensor([prompt[:-1]]), past_key_values=mine)
        on(torch.tensor([other[:-1]]), past_key_values=theirs)
        mine.states[0].memory = theirs.memories[0].clone()
        ids = torch.tensor([prompt])
        out = on.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=mine, max_new_tokens=2)
    assert out[0, -2:].tolist() == other_key


def test_11_time_per_token_and_bytes_of_state_are_the_same_after_a_million_tokens() -> None:
    segment = 512
    model = tiny_model(
        memory="delta",
        dtype=torch.float32,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_hidden_layers=1,
        memory_layers=[0],
        window=segment,
        segment=segment,
        sinks=0,
    )
    cache, ids = model.model.new_cache(), some_ids(50 * segment)
    early = soak(model, cache, 2 * segment, ids[:, : 2 * segment])
    early_bytes = cache.nbytes
    with torch.no_grad():
        model(ids[:, : segment - 60], past_key_values=cache)
    late = soak(model, cache, 1_000_000, ids)
    assert cache.tokens_seen > 1_000_000
    assert cache.nbytes == early_bytes
    assert late < 3 * early


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.75])
def test_12_a_random_passkey_at_a_random_place_is_repeated(depth: float) -> None:
    """Keys and filler are new for every sample. A model built by hand shows what the machinery can do,
    whatever training makes of it; its attention does nothing, so every key asked for has left the window."""
    model = recalling_model()
    for length in (80, 600):
        assert found(model, length=length, depth=depth, samples=20, seed=7) >= 0.95
