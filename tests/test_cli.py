"""The command line: fast before anything heavy, and short about mistakes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import fledge.cli
from fledge.arguments import STAGES
from fledge.chat.sampling import Sampling
from fledge.cli import STAGES as DESCRIBED
from fledge.cli import main


SOURCE = str(Path(fledge.__file__).parents[1])
HEAVY = {"torch", "transformers", "trl", "datasets", "accelerate", "numpy"}


def fledge_process(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process of one command, and its wall time in seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fledge", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
    )
    return done, time.perf_counter() - start


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Put a function in the place of a room's and return the list of the calls it gets."""

    def install(module: str, name: str, result: object = None) -> list:
        calls: list = []

        def function(*arguments: object, **options: object) -> object:
            calls.append((arguments, options))
            if isinstance(result, BaseException):
                raise result
            return result

        room = ModuleType(module)
        setattr(room, name, function)
        monkeypatch.setitem(sys.modules, module, room)
        return calls

    return install


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "export.yaml"
    recipe.write_text("model_name_or_path: runs/a\noutput_dir: runs/b\n")
    return str(recipe)


def test_help_lists_every_command_in_no_time() -> None:
    runs = [fledge_process("--help") for _ in range(3)]
    assert min(seconds for _, seconds in runs) < 0.3
    assert runs[0][0].returncode == 0
    for command in (*STAGES, "run", "report", "chat"):
        assert f"\n  {command} " in runs[0][0].stdout


def test_every_stage_is_described() -> None:
    assert list(DESCRIBED) == list(STAGES)


def test_a_recipe_error_exits_with_2_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text("learning_rat: 0.1\n")
    program = f"import sys; from fledge.cli import main; print(main(sys.argv[1:]), {HEAVY!r} & set(sys.modules))"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, "pretrain", str(recipe)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
    )
    assert time.perf_counter() - start < 2
    assert done.stdout == "2 set()\n"
    assert f"{recipe}:1: learning_rat: unknown key; did you mean learning_rate?" in done.stderr
    assert done.stderr.startswith("fledge: ")
    assert "Traceback" not in done.stderr


def test_a_mistake_is_one_message_and_exit_code_2() -> None:
    done, _ = fledge_process("pretrian")
    assert (done.returncode, done.stderr) == (2, "fledge: pretrian: no such command; did you mean pretrain?\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["xyzzy"], "xyzzy: no such command; see fledge --help"),
        (["sft"], "sft: a recipe comes first: fledge sft RECIPE.yaml [--key value ...]"),
        (["sft", "--seed", "1"], "sft: a recipe comes first"),
        (["sft", "missing/sft.yaml"], "missing/sft.yaml: no such file"),
        (["run"], "run: the following arguments are required: RECIPE_FOLDER"),
        (["run", "x", "--onn", "y"], "run: unrecognized arguments: --onn y"),
        (["chat", "x", "--seed", "y"], "chat: argument --seed: invalid int value: 'y'"),
    ],
)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith(f"fledge: {message}")


def test_a_process_speaks_only_if_the_first_did_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(fledge.cli.time, "sleep", waited.append)
    assert main(["xyzzy"]) == 2
    assert waited == [] and capsys.readouterr().err.startswith("fledge: xyzzy: no such command")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["xyzzy"]) == 2
    assert waited == [5.0] and capsys.readouterr().err.startswith("fledge: process 1: xyzzy: no such command")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fledge {fledge.__version__}\n"


def test_a_reader_that_has_left_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run(
        [sys.executable, "-m", "fledge", "--help"], env=environment, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")  # 128 and SIGPIPE, as any command before `| head`


def test_the_help_of_a_stage_lists_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dpo", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  pairs_per_step: an integer; required\n      Pairs per optimizer step" in text
    assert "those of trl.DPOConfig" in text
    assert " beta," in text
    assert main(["pairs", "-h"]) == 0
    assert "  temperature: a number; 1.0 if left out\n" in capsys.readouterr().out


def test_a_stage_gets_its_recipe(fake: Callable[..., list], export: str) -> None:
    calls = fake("fledge.stages.export", "main")
    assert main(["export", export, "--output_dir", "runs/c"]) == 0
    (recipe,) = calls[0][0]
    assert (recipe.stage, recipe.output_dir) == ("export", Path("runs/c"))


@pytest.mark.parametrize(("error", "code"), [(ValueError("no room"), 2), (KeyboardInterrupt(), 130)])
def test_how_a_stage_may_end(fake: Callable[..., list], export: str, error: BaseException, code: int) -> None:
    fake("fledge.stages.export", "main", error)
    assert main(["export", export]) == code


def test_our_own_mistakes_keep_their_traceback(fake: Callable[..., list], export: str) -> None:
    fake("fledge.stages.export", "main", RuntimeError("a bug"))
    with pytest.raises(RuntimeError):
        main(["export", export])


def test_run(fake: Callable[..., list]) -> None:
    calls = fake("fledge.launching.chain", "run", 3)
    assert main(["run", "recipes/a", "--on", "cpu.yaml", "--from", "prepare_sft"]) == 3
    assert main(["run", "recipes/a", "--only", "sft", "--smoke"]) == 3
    assert [arguments for arguments, _ in calls] == [
        (Path("recipes/a"), "cpu.yaml", None, "prepare_sft", False),
        (Path("recipes/a"), None, "sft", None, True),
    ]


def test_report(fake: Callable[..., list], capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake("fledge.results.report", "report", Path("runs/a/report.html"))
    assert main(["report", "runs/a"]) == main(["report", "runs/a", "runs/b", "--html", "c.html"]) == 0
    assert capsys.readouterr().out == "runs/a/report.html\n" * 2
    assert [options for _, options in calls] == [
        {"runs": [Path("runs/a")], "html": None},
        {"runs": [Path("runs/a"), Path("runs/b")], "html": Path("c.html")},
    ]


def test_chat(fake: Callable[..., list]) -> None:
    calls = fake("fledge.chat.terminal", "chat", 0)
    assert main(["chat", "runs/a", "-p", "Hello", "--greedy", "--seed", "1", "--min_p", "0.1", "--compare"]) == 0
    assert calls[0] == (
        (),
        {
            "folder": Path("runs/a"),
            "prompt": "Hello",
            "sampling": Sampling(greedy=True, seed=1, min_p=0.1),
            "system": None,
            "compare": True,
            "device": None,
        },
    )


@pytest.mark.parametrize("stage", ["corpus", "tokenizer", "prepare"])
def test_stages_that_make_data_begin_without_torch(stage: str) -> None:
    said = f"import sys, fledge.stages.{stage}; print(sorted({{'torch', 'datasets', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
