"""The `fledge` command: one table of commands; whatever a command needs is imported inside its branch."""

import argparse
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from fledge import __version__, help
from fledge.causes import NotPushed, leave_with, tell_cause
from fledge.files import is_full_disk
from fledge.launching import log_progress
from fledge.preempted import Preempted, listen


STAGES = {
    "corpus": "build parquet files of real text",
    "tokenizer": "learn a vocabulary",
    "prepare": "tokenise, pack, count and freeze the rows a training stage reads",
    "pretrain": "train a model from nothing",
    "sft": "tune it on conversations",
    "pairs": "make preference pairs",
    "dpo": "tune it on preference pairs",
    "evaluate": "measure models side by side",
    "export": "write a plain Llama folder, or a GGUF file",
}
OTHERS = {
    "run": "every stage of a recipe folder, in order",
    "launch": "a stage or a folder on several machines, by accelerate, Slurm or Ray",
    "plan": "what a recipe costs before it runs: FLOPs, hours, memory per GPU",
    "inspect": "see packed rows, masks and pairs token by token",
    "report": "one page about a run, or that compares several",
    "publish": "push a model and its card to the hub",
    "chat": "talk to a model",
}
VIA = ("accelerate", "slurm", "ray")
SECONDS_FOR_THE_FIRST = 5.0
PLAN = "Keys of the recipe may be overridden, as on a stage: --per_device_train_batch_size 4."


class _Parser(argparse.ArgumentParser):
    """Mistakes are ValueErrors, like everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog.removeprefix('fledge ')}: {message}\n{self.format_usage().strip()}")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 2 after a mistake of the user, which is a ValueError."""
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except ValueError as error:
        # Every process of a launch finds most mistakes; the first one says so, and then the launcher ends the others.
        # A process that is still there after a while is the only one that found this one.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_FOR_THE_FIRST)
        return leave_with(2, error)
    except Preempted as reason:
        return leave_with(Preempted.exit_code, reason)
    except NotPushed as reason:
        return leave_with(NotPushed.exit_code, reason)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 128 + signal.SIGPIPE
    except Exception as error:
        if not is_full_disk(error):
            place = traceback.extract_tb(error.__traceback__)[-1]
            tell_cause(f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})")
            raise
        return leave_with(
            2, f"no room on the disk: {error}; make some, and the same command goes on from what is whole"
        )


def _reader_has_left() -> bool:
    """Whether it is stdout that nobody reads any more, as after `| head`; then nothing is written to it again."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help.overview(STAGES, OTHERS))
        return 0
    if argv[0] == "--version":
        print(f"fledge {__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command in STAGES:
        return _stage(command, rest)
    if command in OTHERS:
        own = {"run": _run, "launch": _launch, "plan": _plan, "inspect": _inspect, "report": _report}
        own |= {"publish": _publish, "chat": _chat}
        return own[command](rest)
    near = get_close_matches(command, [*STAGES, *OTHERS], 1)
    raise ValueError(f"{command}: no such command; {f'did you mean {near[0]}?' if near else 'see fledge --help'}")


def _stage(stage: str, argv: Sequence[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(help.of_stage(stage, STAGES[stage]))
        return 0
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"{stage}: a recipe comes first: fledge {stage} RECIPE.yaml [--key value ...]")
    from fledge.arguments import LIBRARY
    from fledge.recipe import load_recipe

    overrides, allowed = [word for word in argv[1:] if word != "--smoke"], []
    while "--allow-change" in overrides:
        at = overrides.index("--allow-change")
        if at + 1 == len(overrides) or overrides[at + 1].startswith("-"):
            raise ValueError("--allow-change: the key that may differ from the checkpoint's comes after it")
        allowed.append(overrides[at + 1])
        del overrides[at : at + 2]
    recipe = replace(load_recipe(stage, argv[0], overrides, smoke="--smoke" in argv), allowed=tuple(allowed))
    if stage not in LIBRARY and os.environ.get("RANK", "0") != "0":
        return 0  # only training is shared work; the launch's first process does the rest alone
    if stage in LIBRARY:
        from fledge.training.checkpoints import refuse_other_layout

        refuse_other_layout(recipe.output_dir)
    log_progress()
    listen()
    return import_module(f"fledge.stages.{stage}").main(recipe) or 0


def _run(argv: Sequence[str]) -> int:
    parser = _Parser("fledge run", description="Run every stage of a recipe folder, in order.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="RECIPE_FOLDER")
    parser.add_argument("--on", metavar="LAYOUT", help="where it runs: a file, or one of accelerate_configs/")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone, for instance prepare_sft")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="begin with this stage")
    parser.add_argument("--smoke", action="store_true", help="shrunk by the folder's smoke.yaml, into runs/smoke/")
    arguments = parser.parse_args(argv)
    from fledge.launching.chain import run

    listen()
    return run(arguments.folder, arguments.on, arguments.only, arguments.start, arguments.smoke)


def _launch(argv: Sequence[str]) -> int:
    about = "Run, print or queue a stage, or those of a folder, on a layout; --key value goes to the recipe."
    parser = _Parser("fledge launch", description=about, allow_abbrev=False)
    parser.add_argument("target", type=Path, metavar="RECIPE", help="a recipe file, or a folder of them")
    parser.add_argument("--on", required=True, metavar="LAYOUT", help="where: a file, or one of accelerate_configs/")
    parser.add_argument("--via", choices=VIA, default=VIA[0], help="accelerate if left out")
    parser.add_argument("--nodes", type=int, metavar="N", help="machines; as many as the layout says if left out")
    several = parser.add_argument_group("several machines --via accelerate, in its own words")
    several.add_argument("--main_process_ip", metavar="HOST", help="the first machine; this one if left out")
    several.add_argument("--main_process_port", type=int, metavar="PORT", help="29500 if left out")
    slurm = parser.add_argument_group("--via slurm, in the words of sbatch")
    slurm.add_argument("--partition", metavar="P")
    slurm.add_argument("--cpu_partition", metavar="P", help="of stages that need no GPU; --partition if left out")
    slurm.add_argument("--account", metavar="A")
    slurm.add_argument("--time", metavar="LIMIT", help="of each job, such as 24:00:00")
    options, overrides = parser.parse_known_args(argv)
    from fledge.launching.launch import launch

    return launch(overrides=overrides, **vars(options))


def _plan(argv: Sequence[str]) -> int:
    parser = _Parser("fledge plan", description="What a recipe costs before it runs; no GPU is needed.", epilog=PLAN)
    parser.add_argument("path", type=Path, metavar="RECIPE", help="a pretrain, sft or dpo recipe, or a folder")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--on", metavar="LAYOUT", help="one layout, part by part: 8xh100_ddp, or a path")
    where.add_argument("--all", action="store_true", help="all layouts of accelerate_configs/, as without --on")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="of the peak reached; 0.4 if left out")
    parser.add_argument("--tflops", type=float, default=989, metavar="T", help="peak of a GPU; 989, an H100's in bf16")
    parser.add_argument("--price", type=float, default=2.5, metavar="USD", help="of a GPU hour; 2.50 if left out")
    parser.add_argument("--card", type=float, default=80, metavar="GIB", help="memory of a GPU; 80 if left out")
    options, overrides = parser.parse_known_args(argv)
    if not 0 < options.mfu <= 1:
        raise ValueError(f"plan: --mfu {options.mfu:g}: a share of the peak, above 0 and up to 1")
    for name in ("tflops", "price", "card"):
        if not getattr(options, name) > 0:
            raise ValueError(f"plan: --{name} {getattr(options, name):g}: must be above 0")
    from fledge.planning.compute import Prices
    from fledge.planning.terminal import show

    prices = Prices(options.mfu, options.tflops * 1e12, options.price)
    show(options.path, overrides, options.on, prices, options.card, options.json)
    return 0


def _inspect(argv: Sequence[str]) -> int:
    parser = _Parser("fledge inspect", description="See what a packed, masked batch really is.", allow_abbrev=False)
    parser.add_argument(
        "path", type=Path, metavar="RECIPE", help="a prepare, pretrain, sft or dpo recipe, or a folder"
    )
    parser.add_argument("--row", type=int, metavar="N", help="show row N alone, counted from 1")
    parser.add_argument("--rows", type=int, default=4, metavar="K", help="show K rows, evenly spaced; 4 if left out")
    parser.add_argument("--eval", action="store_true", help="the held-out rows instead of those trained on")
    parser.add_argument("--check", action="store_true", help="only list the checks; exit with 2 if one fails")
    parser.add_argument("--leak-test", action="store_true", help="disturb a document and measure its neighbours")
    parser.add_argument("--html", type=Path, metavar="PATH", help="where the page goes; RUN/inspect.html if left out")
    options = parser.parse_args(argv)
    if options.rows < 1:
        raise ValueError(f"inspect: --rows {options.rows}: at least 1")
    from fledge.inspecting.report import inspect

    split = "eval" if options.eval else "train"
    inspect(options.path, split, options.row, options.rows, options.check, options.leak_test, options.html)
    return 0


def _report(argv: Sequence[str]) -> int:
    parser = _Parser("fledge report", description="A page about a run, or of several compared.", allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--html", type=Path, metavar="PATH", help="the page; in the first RUN if left out")
    options = vars(parser.parse_args(argv))
    from fledge.results.report import report

    print(report(**options))
    return 0


def _publish(argv: Sequence[str]) -> int:
    about = "Push a run's export with a model card, and whatever of its stages has not reached the hub."
    parser = _Parser("fledge publish", description=about, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or that of one of its stages")
    parser.add_argument("--to", metavar="OWNER/NAME", help="push the export here; without, only what waits")
    parser.add_argument("--private", action="store_true", help="a repository that is not there yet becomes private")
    parser.add_argument("--dry-run", action="store_true", help="only list every file, and show the card")
    options = vars(parser.parse_args(argv))
    from fledge.publishing.terminal import publish

    return publish(**options)


def _chat(argv: Sequence[str]) -> int:
    from fledge.chat.sampling import Sampling, add_options

    parser = _Parser("fledge chat", description="Talk to a model.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument("-p", dest="prompt", metavar="PROMPT", help="answer this and leave")
    parser.add_argument("--system", metavar="PROMPT", help="a system prompt")
    parser.add_argument("--compare", action="store_true", help="ask base, SFT and DPO models of a run side by side")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1; the fastest there is if left out")
    parser.add_argument("--web", action="store_true", help="a page on this machine instead of the terminal")
    parser.add_argument("--port", type=int, metavar="N", help="of the page; the first free from 7860 if left out")
    add_options(parser)
    options = vars(parser.parse_args(argv))
    web, port = options.pop("web"), options.pop("port")
    if (port is not None and not web) or (web and options["prompt"] is not None):
        raise ValueError("chat: --port goes with --web, and -p without it")
    if web:
        from fledge.chat.web import serve

        del options["prompt"]
        return serve(sampling=Sampling.of(options), port=port, **options)
    from fledge.chat.terminal import chat

    return chat(sampling=Sampling.of(options), **options)
