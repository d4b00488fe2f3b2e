"""RoPE and YaRN against their formulas, by hand, and embedders of one's own in a layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from infinichat.layers import CompressiveMemory, PositionEmbeddings, RoPEEmbeddings, YaRNEmbeddings

F64 = torch.float64


def test_rope_turns_interleaved_pairs_of_the_first_part_from_position_one_on() -> None:
    rope = RoPEEmbeddings(dim=6, seq_len=8, dim_embedding_pct=0.7, base=100)  # 4 of 6 dimensions
    x = torch.tensor([1.0, 0, 0, 2, 5, 6], dtype=F64).expand(1, 1, 3, 6)
    out = rope(x, offset=2)
    for s in range(3):
        fast, slow = 3 + s, (3 + s) / 10  # position 1 + 2 + s; theta 1 and 100^(-2/4)
        expected = [math.cos(fast), math.sin(fast), -2 * math.sin(slow), 2 * math.cos(slow), 5, 6]
        assert out[0, 0, s].tolist() == pytest.approx(expected)


def test_rope_by_default_turns_half() -> None:
    rope = RoPEEmbeddings(8, 16)
    assert (rope.dim_embedding_pct, rope.base, rope.effective_dim) == (0.5, 10000, 4)
    x = torch.randn(2, 3, 5, 8)
    out = rope(x)
    assert torch.equal(out[..., 4:], x[..., 4:])
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))


def test_a_select_mask_gives_tokens_the_positions_of_its_columns() -> None:
    rope = RoPEEmbeddings(8, 16, 1.0)
    x = torch.randn(2, 3, 7, 8, dtype=F64)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, [0, 3, 6]] = True
    mask[1, [1, 2, 5]] = True
    chosen = torch.stack([x[b][:, mask[b]] for b in range(2)])
    whole = rope(x, offset=4)
    expected = torch.stack([whole[b][:, mask[b]] for b in range(2)])
    torch.testing.assert_close(rope(chosen, offset=4, select_mask=mask), expected)


@pytest.mark.parametrize(
    "embedder",
    [RoPEEmbeddings(64, 8, 1.0), YaRNEmbeddings(64, 8, 64, 4096, 1.0)],
    ids=["rope", "yarn"],
)
def test_scores_depend_on_distances_only_even_at_ten_million(embedder: RoPEEmbeddings) -> None:
    q, k = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(at: int) -> Tensor:
        turned = embedder(q, total_seq_len=4096, offset=at + 700) * embedder(k, total_seq_len=4096, offset=at)
        return turned.sum()

    torch.testing.assert_close(score(10_000_000), score(0), rtol=0, atol=2e-5)


def test_yarn_slows_slow_pairs_keeps_fast_ones_and_scales_queries_and_keys() -> None:
    dim, context = 32, 1000
    yarn = YaRNEmbeddings(dim, 64, context, 8000, dim_embedding_pct=1.0)
    x = torch.tensor([1.0, 0] * (dim // 2), dtype=F64).view(1, 1, 1, dim)
    out = yarn(x, total_seq_len=4000, offset=6)[0, 0, 0]
    s, scale = 4.0, 0.1 * math.log(4) + 1
    kinds = set()
    for i in range(dim // 2):
        theta = 10000 ** (-2 * i / dim)
        turns = context * theta / (2 * math.pi)
        kept = min(max((turns - 1) / (32 - 1), 0), 1)
        angle = 7 * (kept * theta + (1 - kept) * theta / s)
        kinds.add("kept" if kept == 1 else "slowed" if kept == 0 else "between")
        expected = [scale * math.cos(angle), scale * math.sin(angle)]
        assert out[2 * i : 2 * i + 2].tolist() == pytest.approx(expected)
    assert kinds == {"kept", "slowed", "between"}


def test_yarn_scales_what_it_does_not_turn_too_for_the_paper_scales_the_scores() -> None:
    yarn = YaRNEmbeddings(8, 64, 100, 400, length_scale=1.5)
    x = torch.randn(1, 1, 3, 8, dtype=F64)
    torch.testing.assert_close(yarn(x, total_seq_len=100)[..., 4:], 1.5 * x[..., 4:])


def test_yarn_within_its_context_is_rope_and_stretches_no_further_than_told() -> None:
    yarn, rope = YaRNEmbeddings(16, 64, 100, 400, 1.0), RoPEEmbeddings(16, 64, 1.0)
    x = torch.randn(1, 2, 5, 16)
    assert torch.equal(yarn(x, total_seq_len=100), rope(x))
    assert [yarn.extension(n) for n in (1, 100, 150, 400, 10**9)] == [1, 1, 1.5, 4, 4]


def test_the_length_counts_in_every_call_and_nothing_stale_is_kept() -> None:
    yarn = YaRNEmbeddings(16, 64, 100, 400, 1.0)
    x = torch.randn(1, 2, 5, 16)
    long = yarn(x, total_seq_len=400)
    assert not torch.allclose(yarn(x, total_seq_len=100), long)
    assert torch.equal(yarn(x, total_seq_len=400), long)


def test_embedders_hold_no_tensors_and_keep_type_and_device() -> None:
    for embedder in (RoPEEmbeddings(8, 4), YaRNEmbeddings(8, 4, 10, 20)):
        assert not embedder.state_dict()
        assert (
            embedder(torch.randn(1, 1, 3, 8, dtype=torch.bfloat16), total_seq_len=3).dtype == torch.bfloat16
        )
        away = torch.empty(1, 1, 3, 8, device="meta")
        assert embedder(away, total_seq_len=3).device.type == "meta"


def test_both_spellings_are_taken_and_others_refused_with_the_valid_ones() -> None:
    assert RoPEEmbeddings(8, 4, dim_embeddings_pct=1.0).dim_embedding_pct == 1.0
    yarn = YaRNEmbeddings(8, 4, 10, 20, dim_embeddings_pct=1.0, len_scale=2.0)
    assert (yarn.dim_embedding_pct, yarn.length_scale) == (1.0, 2.0)
    with pytest.raises(TypeError, match="both dim_embedding_pct and dim_embeddings_pct"):
        RoPEEmbeddings(8, 4, dim_embedding_pct=1.0, dim_embeddings_pct=1.0)
    with pytest.raises(TypeError, match="does not know the argument theta; valid are dim, seq_len, .*base"):
        RoPEEmbeddings(8, 4, theta=3)
    with pytest.raises(TypeError, match="does not know the argument scale; .*length_scale.*len_scale"):
        YaRNEmbeddings(8, 4, 10, 20, scale=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RoPEEmbeddings(6, 4), "dim_embedding_pct is 0.5 of dim 6, 3 dimensions; .* even number"),
        (lambda: RoPEEmbeddings(8, 4, 1.5), "above 0 and at most 1"),
        (lambda: RoPEEmbeddings(0, 4), "dim is 0; it must be a whole number of at least 1"),
        (lambda: RoPEEmbeddings(8, 4, base=1), "base is 1; it must be above 1"),
        (lambda: YaRNEmbeddings(8, 4, 20, 10), "context_len_ext is 10; it must be at least context_len, 20"),
        (lambda: YaRNEmbeddings(8, 4, 10, 20, alpha=32, beta=1), "alpha is 32 and beta 1"),
    ],
)
def test_values_that_cannot_be_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_tensors_of_another_shape_are_refused() -> None:
    rope = RoPEEmbeddings(8, 4)
    with pytest.raises(
        ValueError, match=r"got a tensor \(1, 1, 3, 6\); expected \(batch, heads, tokens, 8\)"
    ):
        rope(torch.randn(1, 1, 3, 6))
    with pytest.raises(ValueError, match=r"select_mask is \(1, 2\) for x \(1, 1, 3, 8\)"):
        rope(torch.randn(1, 1, 3, 8), select_mask=torch.ones(1, 2, dtype=torch.bool))


class Absolute(PositionEmbeddings):
    """Adds a number per position, so that true positions matter; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: list[int] = []

    def forward(
        self, x: Tensor, total_seq_len: int, offset: int = 0, select_mask: Tensor | None = None
    ) -> Tensor:
        self.offsets.append(offset)
        places = torch.arange(x.shape[2]) if select_mask is None else select_mask[0].nonzero()[:, 0]
        return x + torch.sin(0.3 * (1 + offset + places)).to(x.dtype)[:, None]


def test_an_embedder_of_one_s_own_is_told_the_segment_s_offset() -> None:
    embedder = Absolute()
    layer = CompressiveMemory(4, 2, 2, 2, 5, causal=True, position_embedder=embedder)
    layer(torch.randn(2, 12, 4))
    assert embedder.offsets == [0, 0, 5, 5, 10, 10]


def test_an_embedder_of_one_s_own_sees_true_positions_in_streams_padding_and_selections() -> None:
    layer = CompressiveMemory(4, 2, 2, 2, 5, 2, causal=True, position_embedder=Absolute(), window_len=12)
    x = torch.randn(2, 17, 4)
    mask = torch.ones(2, 17, dtype=torch.bool)
    with torch.no_grad():
        plain = CompressiveMemory(4, 2, 2, 2, 5, causal=True, position_embedder=Absolute())
        whole = plain(x)
        first, state = plain(x[:, :7], return_state=True)
        torch.testing.assert_close(torch.cat((first, plain(x[:, 7:], state=state)), dim=1), whole)
        mask[0, 3:] = False
        torch.testing.assert_close(plain(x, padding_mask=mask)[1], whole[1])
        selected = torch.rand(2, 17) < 0.5
        selected[:, -1] = True
        both = [layer(x[b : b + 1, selected[b]], selected[b : b + 1])[0] for b in range(2)]
        most = int(selected.sum(dim=1).max())
        chosen = torch.zeros(2, most, 4)
        for b in range(2):
            chosen[b, : int(selected[b].sum())] = x[b, selected[b]]
        out = layer(chosen, selected)
    for b in range(2):
        torch.testing.assert_close(out[b, : len(both[b])], both[b])


def test_the_base_class_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="PositionEmbeddings has to define forward"):
        PositionEmbeddings()(torch.randn(1, 1, 1, 2), 1)
