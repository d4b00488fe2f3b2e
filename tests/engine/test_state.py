"""A state as plain data: every type survives, and what does not fit is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infinichat.engine.state import dump_cache, load_cache
from infinichat.errors import StateError
from infinichat.protocols import StateDump, TensorRecord
from tests.engine.conftest import MakeEngine, MakeModel, some_ids


def dumped(make_engine: MakeEngine, count: int = 40) -> StateDump:
    engine = make_engine()
    state = engine.new_state()
    list(engine.feed(state, some_ids(count)))
    return engine.dump_state(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 60])
@torch.inference_mode()
def test_every_tensor_survives(count: int, dtype: torch.dtype, make_model: MakeModel) -> None:
    model = make_model()
    for name, parameter in model.named_parameters():
        if ".memory." not in name:
            parameter.data = parameter.data.to(dtype)
    cache = model.model.new_cache()
    if count:
        model.model(input_ids=torch.tensor([some_ids(count)]), past_key_values=cache, keep=1)
    dump = dump_cache(cache, {"format": "x"})
    back = load_cache(dump, model.config, {"format": "x"}).to_tensors()
    for name, tensor in cache.to_tensors().items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype
    assert dump.nbytes == sum(tensor.nbytes for tensor in back.values())


@pytest.mark.parametrize("key", ["format", "fingerprint", "window", "segment", "dtype"])
def test_a_state_of_another_model_is_refused_by_what_differs(key: str, make_engine: MakeEngine) -> None:
    dump = dumped(make_engine)
    other = StateDump(dump.tensors, {**dump.meta, key: "other"})
    with pytest.raises(StateError, match=f"{key} is other"):
        make_engine().load_state(other)
    with pytest.raises(StateError, match="is None"):
        make_engine().load_state(StateDump(dump.tensors, {}))


def test_damaged_tensors_are_refused_by_name(make_engine: MakeEngine) -> None:
    dump = dumped(make_engine)
    engine = make_engine()

    def with_record(name: str, record: TensorRecord | None) -> StateDump:
        tensors = {key: value for key, value in dump.tensors.items() if key != name}
        return replace(dump, tensors=tensors if record is None else {**tensors, name: record})

    k = dump.tensors["layers.0.k"]
    with pytest.raises(StateError, match=r"layers\.0\.k has .* bytes"):
        engine.load_state(with_record("layers.0.k", replace(k, data=k.data[:-4])))
    with pytest.raises(StateError, match="type 'F8'"):
        engine.load_state(with_record("layers.0.k", replace(k, dtype="F8")))
    with pytest.raises(StateError, match=r"layers\.0\.k"):
        engine.load_state(with_record("layers.0.k", None))


def test_a_state_of_two_conversations_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    cache = model.model.new_cache(2)
    with torch.inference_mode():
        model.model(input_ids=torch.tensor([[1, 2], [3, 4]]), past_key_values=cache, keep=1)
    with pytest.raises(StateError, match="2 conversations"):
        load_cache(dump_cache(cache, {}), model.config, {})
