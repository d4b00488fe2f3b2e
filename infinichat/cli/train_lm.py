"""``infinichat train lm``, ``train passkey`` and ``train prepare``: their options, and what is printed.

Options that the run_clm scripts of transformers and of other Infini-attention code have are called as there.
Not taken over: what would send things somewhere (``push_to_hub``, ``hub_*``, ``report_to``,
``with_tracking``), run a model's own code (``trust_remote_code``), or steer a cache of tokens that streaming
does not have (``overwrite_cache``, ``preprocessing_num_workers``).

Many processes, on one machine or more: ``accelerate launch --num_processes N -m infinichat train lm ...``
or, on plain processors, ``torchrun --nproc_per_node N -m infinichat train lm ...`` (each process reads the
text and takes its rows; results are those of one process with N times the batch).
With ``--fsdp`` the parameters, gradients and moments are spread over the processes instead of copied. On four
machines of eight devices, started on each with its own rank:

    accelerate launch --multi_gpu --num_machines 4 --num_processes 32 --machine_rank R
        --main_process_ip FIRST --main_process_port 29500
        -m infinichat train lm --fsdp --mixed_precision bf16 ...

``--output_dir`` has to be on a disk that all of them share.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from infinichat.cli.context import Context
from infinichat.cli.pages import keep_pages
from infinichat.cli.parser import add_json, add_model, count, number, whole
from infinichat.cli.text import table
from infinichat.errors import UsageError
from infinichat.text.figures import size

if TYPE_CHECKING:
    from infinichat.training.lm_model import Learning, Start
    from infinichat.training.lm_run import Processes, RunOptions

Verbs = argparse._SubParsersAction
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """``lm``, ``passkey`` and ``prepare``."""
    text = "a language model on any text, over blocks of many segments"
    lm = verbs.add_parser("lm", help=text, description=text)
    _add_lm(lm)
    _add_shared(lm, rows=8, rate=5e-5, learns="all")
    lm.set_defaults(verb=_lm)
    text = "the paper's passkey task, at a few thousand tokens"
    passkey = verbs.add_parser("passkey", help=text, description=text)
    _add_passkey(passkey)
    _add_shared(passkey, rows=1, rate=3e-4, learns="lora")
    passkey.set_defaults(verb=_passkey)
    text = "a corpus (enwik8-like, WikiText-like, PG-19-like) into parts to train and to measure on"
    prepare = verbs.add_parser("prepare", help=text, description=text)
    prepare.add_argument("source", type=Path, metavar="FILE|FOLDER")
    prepare.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    prepare.add_argument("--kind", choices=("bytes", "wikitext", "books"), help="(told from what is there)")
    add_json(prepare)
    prepare.set_defaults(verb=_prepare)


def _add_lm(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("text")
    data.add_argument(
        "--dataset_name",
        type=Path,
        metavar="PATH",
        help="a file or folder: text, JSONL, Parquet, saved datasets",
    )
    data.add_argument("--train_file", type=Path, metavar="PATH", help="the same")
    data.add_argument("--validation_file", type=Path, metavar="PATH", help="what is measured")
    data.add_argument(
        "--validation_split_percentage",
        type=whole(0),
        default=5,
        metavar="P",
        help="held out without one (5)",
    )
    data.add_argument("--text_column_name", default="text", metavar="NAME", help="in JSONL, Parquet (text)")
    data.add_argument("--block_size", type=count, default=32768, metavar="N", help="tokens of a row (32768)")
    data.add_argument(
        "--max_eval_blocks", type=whole(0), default=64, metavar="N", help="measured; 0: all (64)"
    )
    data.add_argument("--per_device_eval_batch_size", type=count, default=8, metavar="N", help="rows (8)")
    data.add_argument("--num_train_epochs", type=count, default=3, metavar="N", help="(3)")


def _add_passkey(parser: argparse.ArgumentParser) -> None:
    task = parser.add_argument_group("task")
    task.add_argument(
        "--num_tokens", type=count, default=4096, metavar="N", help="of a row, real tokens (4096)"
    )
    task.add_argument("--min_tokens", type=count, metavar="N", help="draw a length from here for each step")
    task.add_argument(
        "--eval_rows", type=count, default=16, metavar="N", help="with other keys, measured (16)"
    )


def _add_shared(
    parser: argparse.ArgumentParser, *, rows: int, rate: float, learns: Literal["all", "lora"]
) -> None:
    add_model(parser, again=True)
    model = parser.add_argument_group("model")
    model.add_argument("--model_name_or_path", metavar="NAME|PATH", help="the same as --model")
    model.add_argument("--config_name", type=Path, metavar="FILE", help="a new model of this configuration")
    model.add_argument("--tokenizer_name", metavar="FOLDER|bytes", help="of a new model")
    model.add_argument("--segment_length", type=count, metavar="N", help="tokens (the model's own)")
    model.add_argument("--window", type=count, metavar="N", help="tokens seen exactly (the model's own)")
    model.add_argument("--learns", choices=("all", "memory", "lora"), default=learns, help=f"({learns})")
    for name, default in (("rank", 8), ("alpha", 32)):
        model.add_argument(f"--lora_{name}", type=count, default=default, metavar="N", help=f"({default})")
    model.add_argument(
        "--lora_layers",
        choices=("all", "above"),
        help="above: above a memory (for one that is trained already; a new one: all)",
    )
    model.add_argument("--lora_dropout", type=number(0, 1), default=0.0, metavar="P", help="(0)")
    steps = parser.add_argument_group("training")
    steps.add_argument(
        "--type", choices=("I", "II"), default="II", help="I: one forward; II: streamed by segments (II)"
    )
    steps.add_argument(
        "--truncate_segments", type=count, metavar="K", help="II: gradients through K segments (all of them)"
    )
    steps.add_argument("--max_train_steps", type=count, metavar="N", help="instead of epochs")
    steps.add_argument(
        "--per_device_train_batch_size", type=count, default=rows, metavar="N", help=f"rows ({rows})"
    )
    steps.add_argument("--gradient_accumulation_steps", type=count, default=1, metavar="N", help="(1)")
    steps.add_argument("--learning_rate", type=number(0, 10), default=rate, metavar="R", help=f"({rate})")
    steps.add_argument(
        "--memory_learning_rate",
        type=number(0, 10),
        metavar="R",
        help="of a memory (a new one: as --learning_rate; one that is trained already: at most 3e-05)",
    )
    steps.add_argument("--gate_learning_rate", type=number(0, 10), default=0.01, metavar="R", help="(0.01)")
    steps.add_argument(
        "--weight_decay", type=number(0, 10), default=0.0, metavar="D", help="not of gates (0)"
    )
    steps.add_argument("--lr_scheduler_type", choices=SCHEDULES, default="linear", help="(linear)")
    steps.add_argument("--num_warmup_steps", type=whole(0), default=0, metavar="N", help="(0)")
    steps.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    steps.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="(no)")
    steps.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    steps.add_argument("--fsdp", action="store_true", help="spread the parameters over all processes")
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output_dir", type=Path, required=True, metavar="FOLDER", help="log, states, checkpoint"
    )
    out.add_argument(
        "--checkpointing_steps", type=_steps, metavar="N|epoch", help="write the state (only at the end)"
    )
    out.add_argument("--save_total_limit", type=count, default=2, metavar="N", help="states that stay (2)")
    out.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="last",
        metavar="FOLDER",
        help="go on exactly (from the last state)",
    )
    out.add_argument("--eval_steps", type=count, metavar="N", help="measure (only at the end)")
    out.add_argument("--logging_steps", type=count, default=10, metavar="N", help="log (10)")


def _steps(text: str) -> int | Literal["epoch"]:
    return "epoch" if text == "epoch" else count(text)


def _lm(args: argparse.Namespace, context: Context) -> int:
    keep_pages()
    from infinichat.training.lm import LmOptions, check_options, train_lm
    from infinichat.training.texts import Texts

    if args.dataset_name is not None and args.train_file is not None:
        raise UsageError("--dataset_name and --train_file both name the text; give one of them.")
    text = args.dataset_name or args.train_file
    if text is None:
        raise UsageError("there is no text to train on. Next: --train_file FILE, or --dataset_name FOLDER")
    options = LmOptions(
        start=_start(args),
        texts=Texts(text, args.validation_file, args.validation_split_percentage, args.text_column_name),
        learning=_learning(args),
        run=_run_options(args, args.max_train_steps or 1),
        block=args.block_size,
        rows=args.per_device_train_batch_size,
        check_rows=args.per_device_eval_batch_size,
        accumulation=args.gradient_accumulation_steps,
        epochs=args.num_train_epochs,
        most_steps=args.max_train_steps,
        check_blocks=args.max_eval_blocks or None,
    )
    check_options(options)
    processes = _processes(args)
    return _finish(train_lm(options, processes=processes, **_talk(context)), args, context, processes)


def _passkey(args: argparse.Namespace, context: Context) -> int:
    keep_pages()
    from infinichat.training.passkey import PasskeyOptions, train_passkey

    options = PasskeyOptions(
        start=_start(args),
        learning=_learning(args),
        run=_run_options(args, args.max_train_steps or 400),
        tokens=args.num_tokens,
        least_tokens=args.min_tokens,
        rows=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        check_rows=args.eval_rows,
    )
    processes = _processes(args)
    return _finish(train_passkey(options, processes=processes, **_talk(context)), args, context, processes)


def _prepare(args: argparse.Namespace, context: Context) -> int:
    from infinichat.training.corpora import prepare_corpus

    record = prepare_corpus(args.source, args.out, args.kind)
    if args.json:
        context.console.json(record)
        return 0
    rows = [
        [part, f"{about['documents']:,}", size(about["bytes"]), str(about.get("in_earlier_parts", ""))]
        for part, about in record["parts"].items()
    ]
    context.console.line(table(["part", "documents", "text", "also in an earlier part"], rows))
    context.console.status(
        f"wrote {args.out} ({record['kind']}). Next: infinichat train lm --dataset_name {args.out}"
    )
    return 0


def _start(args: argparse.Namespace) -> Start:
    from infinichat.training.lm_model import Start

    model = args.model or args.model_name_or_path
    if model is not None and args.config_name is not None:
        raise UsageError("--config_name makes a new model, and --model names one; give one of them.")
    return Start(model, args.config_name, args.tokenizer_name, args.window, args.segment_length)


def _learning(args: argparse.Namespace) -> Learning:
    from infinichat.training.lm_model import Learning

    return Learning(
        learns=args.learns,
        rate=args.learning_rate,
        gate_rate=args.gate_learning_rate,
        memory_rate=args.memory_learning_rate,
        decay=args.weight_decay,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        lora_layers=args.lora_layers,
    )


def _run_options(args: argparse.Namespace, steps: int) -> RunOptions:
    from infinichat.training.lm_run import RunOptions

    if args.truncate_segments is not None and args.type == "I":
        raise UsageError("--truncate_segments goes with --type II; one forward keeps every gradient.")
    return RunOptions(
        out=args.output_dir,
        steps=steps,
        way=args.type,
        truncate=args.truncate_segments,
        schedule=args.lr_scheduler_type,
        warm_up=args.num_warmup_steps,
        seed=args.seed,
        save_every=args.checkpointing_steps,
        keep=args.save_total_limit,
        log_every=args.logging_steps,
        check_every=args.eval_steps,
        resume=args.resume_from_checkpoint,
    )


def _processes(args: argparse.Namespace) -> Processes:
    from infinichat.training.lm_run import Processes

    return Processes(mixed_precision=args.mixed_precision, cpu=args.cpu, fsdp=args.fsdp)


def _talk(context: Context) -> dict[str, Any]:
    return {"report": context.console.progress, "say": context.console.status}


def _finish(folder: Path, args: argparse.Namespace, context: Context, processes: Processes) -> int:
    """Draw the log and say where the checkpoint is, in the first process."""
    if processes.first:
        from infinichat.training.plots import draw

        context.console.clear_progress()
        context.console.line(str(folder))
        for picture in draw(args.output_dir):
            context.console.line(str(picture))
    return 0
