"""Every family of the table: retrofitted it is its base; it is streamed, generated with, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.config import EngineSettings, Settings
from infinichat.engine.kernels import ModuleStep, PlainStep, Step
from infinichat.engine.load import engine_of
from infinichat.engine.native import NativeStep
from infinichat.engine.quantize import WeightFormat
from infinichat.messages import SamplingOptions
from infinichat.model.configuration_infini import FEATURES, InfiniConfig
from infinichat.model.loading import LoadedModel, load_model
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.registry import Registry
from infinichat.model.retrofit import retrofit
from infinichat.paths import Paths
from tests.engine.tiny import engine_over

from .tiny_families import VARIANTS, family_ids, save_family, tiny_family
from .tiny_infini import KINDS, Kind, open_memory, streamed

variants = pytest.mark.parametrize("variant", VARIANTS)
WINDOW: dict[str, Any] = {"window": 64, "segment": 16, "sinks": 4}


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


Make = Callable[..., LoadedModel]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a variant, the same for all tests."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda variant: save_family(tiny_family(variant), folder / variant))


@pytest.fixture
def make(registry: Registry, bases: Callable[[str], Path], tmp_path: Path) -> Make:
    """A variant retrofitted and loaded."""

    def made(variant: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedModel:
        out = retrofit(bases(variant), tmp_path / "out", registry=registry, **{**WINDOW, **options})
        return load_model(out, registry=registry, dtype=dtype)

    return made


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    out: Tensor = model(ids).logits
    return out


@variants
def test_over_its_window_a_retrofitted_model_is_its_base(make: Make, variant: str) -> None:
    loaded, ids = make(variant), family_ids(64, rows=2)
    base = tiny_family(variant)
    torch.testing.assert_close(logits(loaded.model, ids), logits(base, ids), rtol=1e-5, atol=2e-5)
    for parameter in base.parameters():  # each of them counts
        assert bool((parameter != 0).any())


@variants
@torch.no_grad()
def test_each_feature_of_a_family_shows(make: Make, variant: str) -> None:
    """Without any one of them the model would not be its base."""
    model, ids = make(variant).model, family_ids(64)
    want = model(ids).logits
    without: dict[str, dict[str, Any]] = {
        name: {name: plain} for name, plain in FEATURES.items() if name in model.config.features
    }
    # What experts are is one feature.
    for name in ("num_experts", "num_experts_per_tok", "mlp_only_layers"):
        without.pop(name, None)
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        without.pop(name, None)
    without |= {key: {"infini_rope": rope} for key, rope in _plainer(model.config.infini_rope).items()}
    if model.config.layer_types is not None and variant != "mistral":
        without["layer_types"] = {"layer_types": None}
    for name, changes in without.items():
        config = InfiniConfig(**{**model.config.to_dict(), **changes})
        other = InfiniForCausalLM(config).eval()
        other.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(other(ids).logits, want, atol=1e-3), name


def _plainer(rope: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What ``rope`` would be with another base, and without each of the things that it has."""
    found = {"theta": {**rope, "theta": 123.0}}
    if rope["scaling"] is not None:
        found["scaling"] = {**rope, "scaling": None}
    if "local_theta" in rope:
        found["local_theta"] = {key: value for key, value in rope.items() if key != "local_theta"}
    if "partial" in rope:  # LongRoPE's factors are as many as frequencies
        found["partial"] = {"theta": rope["theta"], "scaling": None}
    return found


@variants
def test_pieces_single_tokens_and_one_shot_are_the_same_far_beyond_the_window(
    make: Make, variant: str
) -> None:
    model = make(variant, dtype=torch.float64).model
    ids = family_ids(150)
    whole = logits(model, ids)
    with torch.no_grad():
        for cuts in (None, [5, 64, 65, 100, 131], [80, 149]):
            torch.testing.assert_close(streamed(model, ids, cuts), whole, rtol=1e-9, atol=1e-9)


@variants
@torch.no_grad()
def test_a_padded_row_is_as_if_it_were_alone(make: Make, variant: str) -> None:
    model = make(variant, dtype=torch.float64).model
    rows = [family_ids(120), family_ids(77, seed=6)]
    ids = torch.cat((rows[0], torch.nn.functional.pad(rows[1], (43, 0), value=2)))
    mask = torch.ones_like(ids)
    mask[1, :43] = 0
    out = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(out[0], logits(model, rows[0])[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out[1, 43:], logits(model, rows[1])[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_where_all_layers_slide_inside_the_window_it_is_its_base_at_any_length(make: Make) -> None:
    model, ids = make("mistral").model, family_ids(200)
    torch.testing.assert_close(logits(model, ids), logits(tiny_family("mistral"), ids), rtol=1e-5, atol=2e-5)


def test_a_sliding_layer_sees_a_sink_only_where_it_stands(registry: Registry, tmp_path: Path) -> None:
    """Right after a segment has left, the sinks are 49 slots back; a layer that sees 24 does not see them,
    one that sees 60 does."""
    ids = family_ids(65)
    for span, seen in ((24, False), (60, True)):
        out = []
        for sinks in (4, 0):
            folder = tmp_path / f"{span}-{sinks}"
            base = save_family(tiny_family("phi3", sliding_window=span, num_hidden_layers=1), folder / "base")
            retrofit(base, folder / "out", registry=registry, **{**WINDOW, "sinks": sinks})
            out.append(logits(load_model(folder / "out", registry=registry).model, ids)[:, -1])
        assert torch.allclose(out[0], out[1], atol=1e-6) is not seen


@torch.no_grad()
def test_longrope_takes_the_factors_that_the_window_needs(registry: Registry, tmp_path: Path) -> None:
    base, ids = tiny_family("phi3-longrope"), family_ids(200)
    folder = save_family(base, tmp_path / "base")
    retrofit(folder, tmp_path / "short", registry=registry, window=128)
    retrofit(folder, tmp_path / "long", registry=registry, window=256)
    short, long = (load_model(tmp_path / name, registry=registry).model for name in ("short", "long"))
    torch.testing.assert_close(logits(short, ids[:, :128]), logits(base, ids[:, :128]), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits(long, ids), logits(base, ids), rtol=1e-5, atol=2e-5)


@variants
def test_generate_and_every_step_of_the_engine_say_the_same(make: Make, variant: str) -> None:
    model, ids = make(variant).model, family_ids(70)
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, eos_token_id=-1
    )
    steps: list[Step] = [ModuleStep(model)]
    if PlainStep.fits(model):
        steps.append(PlainStep(model, format="float32"))
    assert (len(steps) == 1) is (model.config.num_experts > 0)
    for step in steps:
        engine = engine_over(model, step=step)
        state = engine.new_state()
        list(engine.feed(state, ids[0].tolist()))
        options = SamplingOptions(temperature=0, max_tokens=30)
        got = [token.token_id for token in engine.generate(state, options, end_ids=[])]
        assert got == said[0, 70:].tolist()


@variants
@torch.inference_mode()
def test_a_plain_step_is_the_forward(make: Make, variant: str) -> None:
    model = make(variant).model
    if not PlainStep.fits(model):
        return
    formats: dict[WeightFormat, float] = {"float32": 1e-4, "int8": 0.3}
    for format, off in formats.items():
        plain, module = PlainStep(model, format=format), ModuleStep(model)
        ours, theirs = model.model.new_cache(), model.model.new_cache()
        for token_id in family_ids(100)[0].tolist():
            plain.feed(ours, token_id)
            module.feed(theirs, token_id)
        assert ours.last_hidden is not None
        assert theirs.last_hidden is not None
        got, want = plain.logits(ours.last_hidden).float(), module.logits(theirs.last_hidden)
        assert float((got - want).norm() / want.norm()) < off
        tensors = theirs.to_tensors()
        if format == "float32":
            for name, tensor in ours.to_tensors().items():
                torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-4)


@variants
def test_the_compiled_step_takes_what_computes_as_a_llama(make: Make, variant: str) -> None:
    loaded = make(variant)
    llamas = {"llama1", "llama3", "llama-biased", "smollm2", "qwen2"}
    # Its tiles need a vocabulary in sixteens.
    config = InfiniConfig(**{**loaded.model.config.to_dict(), "vocab_size": 288, "hidden_act": "silu"})
    assert NativeStep.fits(InfiniForCausalLM(config)) is (variant in llamas)


def test_a_window_that_never_binds_leaves_the_compiled_step(make: Make) -> None:
    model = make("phi3", window=16, segment=8, sinks=4).model
    config = InfiniConfig(**{**model.config.to_dict(), "vocab_size": 288})
    assert NativeStep.fits(InfiniForCausalLM(config))


@variants
def test_in_bfloat16_it_says_nearly_the_same(make: Make, variant: str) -> None:
    narrow = make(variant, dtype=torch.bfloat16).model
    ids = family_ids(100)
    cache = narrow.model.new_cache()
    with torch.no_grad():
        out = narrow(ids, past_key_values=cache).logits
    assert out.dtype == cache.dtype == torch.bfloat16
    theirs = tiny_family(variant).to(torch.bfloat16)
    want = logits(theirs, ids[:, :64]).float()
    exact = logits(tiny_family(variant), ids[:, :64])
    ours, noise = (out[:, :64].float() - exact).norm(), (want - exact).norm()
    # Where experts are, a rounding may choose others.
    assert float(ours) < (1.5 if narrow.config.num_experts == 0 else 3) * float(noise)


@variants
@pytest.mark.parametrize("how", ["copied", "saved by transformers"])
def test_saved_and_loaded_again_it_is_the_same(
    make: Make, registry: Registry, tmp_path: Path, variant: str, how: str
) -> None:
    first, ids = make(variant, copy=True), family_ids(100)
    folder = first.path
    if how == "saved by transformers":
        folder = tmp_path / "saved"
        first.model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((first.path / name).read_text())
        again = InfiniForCausalLM.from_pretrained(folder).eval()
        torch.testing.assert_close(logits(again, ids), logits(first.model, ids), rtol=1e-5, atol=1e-5)
    second = load_model(folder, registry=registry)
    torch.testing.assert_close(logits(second.model, ids), logits(first.model, ids), rtol=1e-5, atol=1e-5)
    assert second.model.config.features == first.model.config.features


@pytest.mark.parametrize("variant", ["qwen3", "gemma3", "qwen2-moe"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_memory_works_on_other_families(make: Make, variant: str, kind: Kind) -> None:
    sizes = {"memory_slots": 9, "memory_key_dim": 6, "memory_order": 2}
    shut = make(variant, dtype=torch.float64, memory=kind, memory_layers=[1, 2], **sizes)
    config = InfiniConfig(**{**shut.model.config.to_dict(), "memory_trained": True, "memory_rank": 2})
    model = InfiniForCausalLM(config).double().eval()
    model.load_state_dict(shut.model.state_dict(), strict=False)
    ids = family_ids(150)
    base = logits(shut.model, ids)
    for layer in model.model.layers:
        torch.manual_seed(2)
        open_memory(layer.memory)
    whole = logits(model, ids)
    assert not torch.allclose(whole[:, 100:], base[:, 100:], atol=1e-3)
    if kind != "bank":  # which is read as soon as something is written
        torch.testing.assert_close(whole[:, :64], base[:, :64], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(streamed(model, ids, [7, 66, 131]), whole, rtol=1e-8, atol=1e-8)
    if PlainStep.fits(model):
        narrow = model.float()
        plain, cache = PlainStep(narrow, format="float32"), narrow.model.new_cache()
        for token_id in ids[0].tolist():
            plain.feed(cache, token_id)
        assert cache.last_hidden is not None
        torch.testing.assert_close(
            plain.logits(cache.last_hidden), whole[0, -1].float(), rtol=1e-2, atol=1e-2
        )


@pytest.mark.parametrize("variant", ["qwen3", "gemma3", "phi3-longrope", "qwen2-moe"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_engine_runs_a_family_as_it_is_set_up_on_this_machine(
    make: Make, tmp_path: Path, variant: str, dtype: str
) -> None:
    """Whatever formats and step are chosen: answers, and goes on from a state that was saved."""
    settings = Settings(engine=EngineSettings(dtype=dtype, threads=1))
    engine = engine_of(make(variant), settings, cache=tmp_path / "cache")
    assert isinstance(engine.step, ModuleStep if variant == "qwen2-moe" else PlainStep)
    state, options = engine.new_state(), SamplingOptions(temperature=0, max_tokens=8)
    list(engine.feed(state, family_ids(90)[0].tolist()))
    dump = engine.dump_state(state)
    answers = [
        [token.token_id for token in engine.generate(each, options, end_ids=[])]
        for each in (state, engine.load_state(dump))
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 8
