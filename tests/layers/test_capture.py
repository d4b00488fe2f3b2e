"""torch.compile and torch.export: whole graphs, equal numbers.

Captured with dynamo alone (``backend="eager"``) and exported, which is where a layer can stand in the way;
code generation for the tiny graphs here would take most of the suite's time.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinichat.attention.memory import MemoryState
from infinichat.layers import CompressiveMemory, InfiniState, InfiniTransformer, MoDInfiniTransformer


def captured(module: torch.nn.Module) -> tuple[torch.nn.Module, list[int]]:
    """The module compiled without graph breaks, and a list that grows by one with each graph."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    assert isinstance(compiled, torch.nn.Module)
    return compiled, graphs


def test_a_layer_compiles_to_one_graph_and_trains_through_it() -> None:
    layer = InfiniTransformer(6, 8, 4, 4, 2, "swiglu", 8, "delta", True, "rope", num_kv_heads=1)
    compiled, graphs = captured(layer)
    x = torch.randn(2, 13, 6)
    compiled(x).square().sum().backward()
    got = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    layer(x).square().sum().backward()
    for gradient, parameter in zip(got, layer.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert len(graphs) == 1


def test_streaming_segment_by_segment_stops_compiling() -> None:
    layer, state, parts = CompressiveMemory(6, 4, 4, 2, 4, causal=True, position_embedder="rope"), None, []
    compiled, graphs = captured(layer)
    x = torch.randn(1, 28, 6)
    with torch.no_grad():
        for piece in x.split(4, dim=1):
            out, state = compiled(piece, state=state, return_state=True)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x))
    assert len(graphs) <= 3


def test_padding_compiles() -> None:
    layer = CompressiveMemory(6, 4, 4, 2, 8, causal=True)
    compiled, graphs = captured(layer)
    x, mask = torch.randn(2, 9, 6), torch.rand(2, 9) < 0.7
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, padding_mask=mask), layer(x, padding_mask=mask))
    assert len(graphs) == 1


@pytest.mark.parametrize("training", [True, False])
def test_mixture_of_depths_compiles(training: bool) -> None:
    layer = MoDInfiniTransformer(6, 8, 4, 4, 2, "gelu", 8, 4, causal=True).train(training)
    compiled, graphs = captured(layer)
    x = torch.randn(2, 9, 6)
    with torch.no_grad():
        for got, expected in zip(compiled(x), layer(x), strict=True):
            torch.testing.assert_close(got, expected)
    assert len(graphs) == 1


def test_a_layer_exports_for_any_batch() -> None:
    layer = InfiniTransformer(6, 8, 4, 4, 2, "ffngeglu", 8, "delta", True, "rope").eval()
    rows = {"x": {0: torch.export.Dim("rows")}}
    exported = torch.export.export(layer, (torch.randn(2, 13, 6),), dynamic_shapes=rows)
    x = torch.randn(5, 13, 6)
    torch.testing.assert_close(exported.module()(x), layer(x))


def test_mixture_of_depths_exports_in_inference() -> None:
    layer = MoDInfiniTransformer(6, 8, 4, 4, 2, "gelu", 8, 4, causal=True).eval()
    exported = torch.export.export(layer, (torch.randn(2, 9, 6),))
    x = torch.randn(2, 9, 6)
    for got, expected in zip(exported.module()(x), layer(x), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_step_with_states_exports_where_states_are_made_known() -> None:
    for kind in (MemoryState, InfiniState):
        torch.export.register_dataclass(kind)
    layer = CompressiveMemory(6, 4, 4, 2, 4, causal=True).eval()
    x = torch.randn(1, 4, 6)
    _, state = layer(x, return_state=True)
    exported = torch.export.export(layer, (x,), {"state": state, "return_state": True})
    y = torch.randn(1, 4, 6)
    got, after = exported.module()(y, state=state, return_state=True)
    expected, wanted = layer(y, state=state, return_state=True)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(after.memory.M, wanted.memory.M)
