"""Infini-attention as layers for anyone's network: ``torch.nn`` modules that know nothing of this package.

    from infinichat.layers import InfiniTransformer, RoPEEmbeddings

    layer = InfiniTransformer(dim_input=768, dim_hidden=2048, dim_key=64, dim_value=64, num_heads=8,
                              activation="ffngeglu", segment_len=2048, update="delta", causal=True,
                              position_embedder=RoPEEmbeddings(dim=64, seq_len=2048))
    y = layer(x)                                                    # [B, S, 768], any S
    y, state = layer(x, return_state=True)                          # stream, stop, resume:
    y, state = layer(more, state=state, return_state=True)          # the same as layer(cat(x, more))

Coming from dingo-actual/infini-transformer, change the import. Argument names (both its README's and its
code's), defaults, order, shapes and state_dict keys are the same; its checkpoints load.

    from infini_transformer import ...             from infinichat.layers import ...
    infini_transformer.compressive_memory          infinichat.layers.compressive_memory
    infini_transformer.transformer                 infinichat.layers.transformer, .mixture_of_depths
    infini_transformer.positional_embeddings       infinichat.layers.positions
    infini_transformer.activations                 infinichat.layers.activations
    examples/modinfiniformer.py                    python -m infinichat.layers.example

What it does differently, and why:

    there                                          here
    heads by view: each sees other tokens,         heads by heads: weights trained there with several
      the future among them                          heads mean something else here, so train on
    z starts as ones / dim_key; the first          z starts as 0, and while nothing is written the gate is
      segment is scaled by 1 - gate                  skipped: the first segment is plain attention
    init_z of either sign                          its magnitude: a negative mass divides by zero
    update="bogus" writes nothing                  ValueError with the valid names
    unknown arguments ignored or TypeError         TypeError with the valid names
    positional_embedder="rope" in the README       works, in all three classes
    RoPE's theta_i = base^(-2i), i from 1          base^(-2(i-1) / D_r), D_r the turned dimensions
    YaRN's length scale multiplies angles          multiplies queries and keys, as in the paper
    YaRN stretched by the input's length,          by the window's: nothing attends further, and the end
      context_len_ext unused                         of an input must not change its beginning;
                                                     context_len_ext is the longest
    float32 on the CPU only                        any type and device; the memory is float32 at least
    MoD in training: rows after the k-th zeroed,   rows that are not selected pass bit for bit; x is not
      x changed in place, lengths that are no        changed; any length, of a short last segment its
      multiple of the segment crash                  share is selected
    MoD in eval: nearly always fails (its          one pass for the batch, any number of tokens a row;
      issue #10), row by row, (y, None, None)        (y, selected, scores), as its README promises
    MoD's segments counted in selected tokens      in tokens of the sequence: in inference, too, a token
                                                     sees what was selected of its own segment
    W1, V, W2 of ffn*: variance 1 / outputs        1 / inputs

What it has not: ``num_kv_heads`` (GQA), ``window_len`` (a streaming window longer than the segment that
leaves it), ``padding_mask`` (padding anywhere changes nothing), ``state`` and ``return_state``
(``InfiniState``: detach, clone, select_rows, to_tensors), ``selection_loss``.

``torch.compile(layer, fullgraph=True)`` works for all three, with padding and states, in training and
inference; ``torch.export`` too, and with ``torch.export.register_dataclass`` for ``MemoryState`` and
``InfiniState`` also with states. Limits: a graph holds a fixed number of segments, so another length
compiles or exports anew (pieces of one segment with a state do not); under capture an MoD layer computes in
inference as if all tokens were selected, since a graph has fixed sizes; checks that look at values, and an
embedder of one's own without ``relative``, need eager mode.
"""

from infinichat.layers.activations import ACTIVATIONS
from infinichat.layers.compressive_memory import CompressiveMemory
from infinichat.layers.mixture_of_depths import MoDInfiniTransformer, selection_loss
from infinichat.layers.positions import PositionEmbeddings, RoPEEmbeddings, YaRNEmbeddings
from infinichat.layers.state import InfiniState
from infinichat.layers.transformer import InfiniTransformer

__all__ = [
    "ACTIVATIONS",
    "CompressiveMemory",
    "InfiniState",
    "InfiniTransformer",
    "MoDInfiniTransformer",
    "PositionEmbeddings",
    "RoPEEmbeddings",
    "YaRNEmbeddings",
    "selection_loss",
]
