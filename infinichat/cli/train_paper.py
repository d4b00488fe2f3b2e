"""``infinichat train paper``: its options, and the tables that are printed.

The defaults are a comparison that one core makes in about 45 minutes. The paper's own size (12 layers, 8
heads of 128, segments of 2,048 in inputs of 32,768; arXiv 2404.07143, sec. 3.1) on PG-19, where ``--inner
2731`` gives gated MLPs the parameters of the paper's 4,096 channels, would be:

    infinichat train prepare pg19 data/pg19
    accelerate launch --num_processes 8 -m infinichat train paper --dataset_name data/pg19 --output_dir out
        --layers 12 --hidden 1024 --heads 8 --inner 2731 --vocab_size 32000
        --segment_length 2048 --block_size 32768 --full_length 4096 --truncate_segments 0
        --per_device_train_batch_size 8 --max_train_steps 30000 --num_warmup_steps 1000
        --learning_rate 3e-4 --mixed_precision bf16 --bank_slots 1024 --bank_key 64 --bank_fade 256
        --eval_books 50 --passkey_steps 400 --passkey_min_tokens 5120 --passkey_tokens 5120
        --passkey_lengths 32K,128K,256K,512K,1M

The paper trains with Adafactor at 0.01; here it is AdamW, so the rate is another one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinichat.cli.context import Context
from infinichat.cli.pages import keep_pages
from infinichat.cli.parser import add_json, count, counts, names, number, whole
from infinichat.cli.text import table
from infinichat.errors import UsageError

if TYPE_CHECKING:
    from infinichat.training.paper.options import PaperOptions

SCHEDULES = ("linear", "cosine", "constant_with_warmup")
SIZES = {
    "layers": (4, "of every model"),
    "hidden": (128, "channels"),
    "heads": (4, "of attention"),
    "inner": (344, "channels of an MLP, of a model without memory parameters"),
    "segment_length": (64, "tokens of a segment"),
    "full_length": (1024, "tokens that full attention sees: the longest that fits"),
    "bank_slots": (512, "exact pairs in the bank"),
    "bank_key": (16, "width of a head's key in the bank"),
    "bank_fade": (16, "width of the bank's marks"),
    "vocab_size": (2048, "of the tokenizer that is learned"),
}
KINDS = ("local", "xl", "full", "linear", "delta", "bank")


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``paper``."""
    text = "the paper's comparison: six models from scratch, perplexity on whole books, passkey"
    parser = verbs.add_parser("paper", help=text, description=f"{text}.\n\n{__doc__.split(chr(10), 2)[2]}")
    data = parser.add_argument_group("text")
    data.add_argument(
        "--dataset_name",
        type=Path,
        required=True,
        metavar="PATH",
        help="books: a file or folder, as train lm",
    )
    data.add_argument("--validation_file", type=Path, metavar="PATH", help="what is measured")
    data.add_argument(
        "--validation_split_percentage", type=whole(0), default=5, metavar="P", help="without one (5)"
    )
    data.add_argument("--text_column_name", default="text", metavar="NAME", help="in JSONL, Parquet (text)")
    data.add_argument("--tokenizer_name", metavar="FOLDER|bytes", help="instead of one that is learned")
    model = parser.add_argument_group("models")
    model.add_argument(
        "--variants", type=names, default=KINDS, metavar="NAME,...", help=f"({','.join(KINDS)})"
    )
    for name, (default, what) in SIZES.items():
        model.add_argument(f"--{name}", type=count, default=default, metavar="N", help=f"{what} ({default})")
    model.add_argument(
        "--gate_start", type=number(-10, 10), default=0.0, metavar="B", help="the paper's gates' beta (0)"
    )
    _add_training(parser)
    _add_measuring(parser)
    parser.set_defaults(verb=_paper)


def _add_training(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_argument_group("training")
    steps.add_argument("--block_size", type=count, default=1024, metavar="N", help="tokens of a row (1024)")
    steps.add_argument("--per_device_train_batch_size", type=count, default=2, metavar="N", help="rows (2)")
    steps.add_argument("--max_train_steps", type=count, default=600, metavar="N", help="of each model (600)")
    steps.add_argument(
        "--truncate_segments",
        type=whole(0),
        default=16,
        metavar="K",
        help="gradients through K segments (16); 0: all, one segment's graph at a time; of xl always 1",
    )
    for name, default in (("learning_rate", 5e-3), ("gate_learning_rate", 0.02), ("weight_decay", 0.1)):
        steps.add_argument(
            f"--{name}", type=number(0, 10), default=default, metavar="R", help=f"({default:g})"
        )
    steps.add_argument("--lr_scheduler_type", choices=SCHEDULES, default="cosine", help="(cosine)")
    steps.add_argument("--num_warmup_steps", type=whole(0), default=50, metavar="N", help="(50)")
    steps.add_argument("--seed", type=whole(0), default=0, metavar="N", help="(0)")
    steps.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="(no)")
    steps.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    steps.add_argument(
        "--checkpointing_steps", type=count, default=100, metavar="N", help="write the state (100)"
    )
    steps.add_argument("--logging_steps", type=count, default=10, metavar="N", help="log (10)")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("measuring")
    measured.add_argument("--eval_books", type=count, default=2, metavar="N", help="whole held-out books (2)")
    measured.add_argument(
        "--eval_steps", type=count, default=100, metavar="N", help="check while training (100)"
    )
    measured.add_argument(
        "--eval_rows", type=count, default=16, metavar="N", help="blocks of that check (16)"
    )
    task = parser.add_argument_group("passkey")
    task.add_argument("--passkey_steps", type=count, default=150, metavar="N", help="of fine-tuning (150)")
    task.add_argument("--passkey_rows", type=count, default=8, metavar="N", help="of a step (8)")
    task.add_argument("--passkey_min_tokens", type=count, default=128, metavar="N", help="of a row (128)")
    task.add_argument("--passkey_tokens", type=count, default=512, metavar="N", help="at most (512)")
    task.add_argument(
        "--passkey_learning_rate", type=number(0, 10), default=1e-3, metavar="R", help="(0.001)"
    )
    task.add_argument(
        "--passkey_lengths",
        type=counts,
        default=(1024, 2048, 8192, 32768),
        metavar="N,...",
        help="tokens that are asked (1K,2K,8K,32K)",
    )
    task.add_argument(
        "--passkey_samples", type=count, default=4, metavar="N", help="keys at start, middle and end (4)"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a run in it goes on where it stopped",
    )
    add_json(out)
    out.add_argument("--markdown", action="store_true", help="tables as Markdown")


def _paper(args: argparse.Namespace, context: Context) -> int:
    keep_pages()
    from infinichat.training.lm_run import Processes
    from infinichat.training.paper.recipe import compare
    from infinichat.training.paper.report import draw, tables

    options = _options(args)
    processes = Processes(mixed_precision=args.mixed_precision, cpu=args.cpu)
    console = context.console
    results = compare(options, processes=processes, report=console.progress, say=console.status)
    if not processes.first:
        return 0
    console.clear_progress()
    picture = draw(results, args.output_dir)
    if args.json:
        console.json(results)
    else:
        for each in tables(results):
            right = range(1, len(each.header))
            text = f"{each.title}\n\n{table(each.header, each.rows, right=right)}"
            console.line((each.markdown() if args.markdown else text) + "\n")
    if picture is not None:
        console.status(f"drawn: {picture}")
    return 0


def _options(args: argparse.Namespace) -> PaperOptions:
    from infinichat.training.lm_model import Learning
    from infinichat.training.lm_run import RunOptions
    from infinichat.training.paper.options import PaperOptions, Tuning
    from infinichat.training.paper.variants import Sizes
    from infinichat.training.texts import Texts

    unknown = [name for name in args.variants if name not in KINDS]
    if unknown or not args.variants:
        raise UsageError(f"--variants names {', '.join(unknown) or 'nothing'}; valid are {', '.join(KINDS)}.")
    run: dict[str, Any] = {"schedule": args.lr_scheduler_type, "warm_up": args.num_warmup_steps}
    return PaperOptions(
        texts=Texts(
            args.dataset_name, args.validation_file, args.validation_split_percentage, args.text_column_name
        ),
        run=RunOptions(
            out=args.output_dir,
            steps=args.max_train_steps,
            truncate=args.truncate_segments or None,
            seed=args.seed,
            save_every=args.checkpointing_steps,
            keep=1,
            log_every=args.logging_steps,
            check_every=args.eval_steps,
            **run,
        ),
        kinds=args.variants,
        sizes=Sizes(
            layers=args.layers,
            hidden=args.hidden,
            heads=args.heads,
            inner=args.inner,
            segment=args.segment_length,
            full=args.full_length,
            slots=args.bank_slots,
            key=args.bank_key,
            fade=args.bank_fade,
            gate=args.gate_start,
        ),
        learning=Learning(
            rate=args.learning_rate, gate_rate=args.gate_learning_rate, decay=args.weight_decay
        ),
        tuning=Tuning(
            steps=args.passkey_steps,
            rows=args.passkey_rows,
            least=args.passkey_min_tokens,
            tokens=args.passkey_tokens,
            rate=args.passkey_learning_rate,
            lengths=args.passkey_lengths,
            samples=args.passkey_samples,
        ),
        tokenizer=args.tokenizer_name,
        vocabulary=args.vocab_size,
        block=args.block_size,
        rows=args.per_device_train_batch_size,
        books=args.eval_books,
        check_rows=args.eval_rows,
    )
