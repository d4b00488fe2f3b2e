"""What the memory is compared with: the paper's own memory in the same place, and the base with all in view.

Both are made from the weights of the checkpoint that is measured, with its own memory taken out.

    paper   ELU+1 features, M and z (arXiv 2404.07143), in the same layer, per segment, linear and delta. It
            has one trainable number a head, the mixing gate; it is not trained here, but set half open
            (sigmoid(0)), so that what the memory holds really reaches the model.
    base    no memory, full attention over everything said so far, inside the length the base was trained for
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.evals import facts
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.task import Options, Report, Tally, per_conversation
from infinichat.evals.together import Asker
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.memories import PaperMemory
from infinichat.model.modeling_infini import InfiniForCausalLM

HALF_OPEN = 0.0
"""beta of every head: sigmoid(0) = one half from the memory, one half from the window."""


def base_of(engine: InfiniEngine, **changes: Any) -> InfiniEngine:
    """An engine over the checkpoint's base as it was pretrained: no memory; ``changes`` go into its
    configuration."""
    return with_memory(engine, **{**changes, "memory_layers": [], "memory_trained": False})


def with_memory(engine: InfiniEngine, **changes: Any) -> InfiniEngine:
    """An engine over the same weights as ``engine``'s, with ``changes`` in its configuration."""
    config = InfiniConfig(**{**engine.model.config.to_dict(), **changes})
    with torch.device("meta"):
        model = InfiniForCausalLM(config)
    weights = engine.model.state_dict()
    if not config.memory_layers or config.memory != engine.model.config.memory:
        weights = {name: tensor for name, tensor in weights.items() if ".memory." not in name}
        for index in config.memory_layers:
            heads = torch.full((config.num_attention_heads,), HALF_OPEN)
            weights[f"model.layers.{index}.memory.beta"] = heads
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    info = replace(
        engine.info,
        window=config.window,
        segment=config.segment,
        memory_layers=tuple(config.memory_layers) if config.memory_trained else (),
        trained=config.memory_trained,
    )
    model.train(False).requires_grad_(False)
    return InfiniEngine(model, engine.tokenizer, info=info)


def paper(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """``facts`` with the paper's memory, memory on; cells by update rule."""
    cells, notes = [], []
    for rule in ("linear", "delta"):
        engine = with_memory(bench.engine, memory=rule, memory_trained=True)
        assert any(isinstance(layer.memory, PaperMemory) for layer in engine.model.model.layers)
        wanted = replace(options, memory=("on",), sides=("seen",))
        report = facts.measure(Bench.of(engine, bench.say), wanted, transcript)
        for cell in report.cells:
            cell.extra["kind"] = f"paper, {rule}, gate half open, not trained"
        cells += report.cells
        notes = report.notes
    return Report("paper", bench.engine.info.name, options.seed, cells, notes)


def base(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """``facts`` asked of the base, which sees every token since the first; lengths must leave room for the
    telling in what the base was trained for."""
    filler, tally = FillerText(options.filler), Tally()
    longest = bench.engine.model.config.max_position_embeddings
    plain = Bench.of(base_of(bench.engine, window=longest), bench.say)
    asker = Asker(plain)
    for count in options.facts:
        for length in options.lengths:
            for number in range(per_conversation(options.samples, count)):
                rng = random.Random(f"{options.seed}/base/{count}/{length}/{number}")
                script = facts.script(rng, side="seen", count=count, questions=count)
                line = plain.new_conversation()
                for message in script.told:
                    line.tell(message)
                line.feed(Stretch(filler, "dialogues", rng).take(line, length))
                texts = [asked.text for asked in script.asked]
                answers = asker.ask(line, texts, max_tokens=options.max_tokens)
                for asked, answer in zip(script.asked, answers, strict=True):
                    right = asked.right(answer)
                    seen = f"base, full attention over {longest:,} tokens"
                    tally.add(right, memory="off", length=length, facts=count, kind=seen)
                    if transcript is not None:
                        said = {"asked": asked.text, "answer": answer, "expected": asked.expected}
                        transcript.append({"length": length, "facts": count, **said, "right": right})
                bench.say(f"base, {length:,} tokens: {sum(c.correct for c in tally.cells())} right so far")
    return Report("base", bench.engine.info.name, options.seed, tally.cells(), list(filler.notes))
