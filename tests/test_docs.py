"""The documents name commands, keys, paths and files that exist, and every shipped recipe and layout can be used."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from fledge import cli
from fledge.launching.launch import one_recipe
from fledge.launching.plan import read_folder
from fledge.layouts import find_layout, read_layout
from fledge.overrides import SMOKE_RUNS
from fledge.recipe import SMOKE, load_recipe


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("recipes/*/*.yaml"))
SMALL = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob(f"recipes/*/{SMOKE}"))
SHIPPED = sorted(path for path in ROOT.glob("recipes/*/*.yaml") if path.name != SMOKE)
FOLDERS = sorted({*RECIPES, Path("tests/e2e/tiny")})
LAYOUTS = sorted(path.relative_to(ROOT) for path in ROOT.glob("accelerate_configs/*.yaml"))
ROOMS = ("accelerate_configs", "chat_templates", "benchmarks", "docs")
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "recipes/**/*.md", *(f"{room}/*.md" for room in ROOMS))
    for path in ROOT.glob(pattern)
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.*-]+(/[\w.*-]+)+/?")
SUFFIXES = {".py", ".yaml", ".yml", ".md", ".jinja", ".cfg", ".toml", ".txt"}
MADE = ("runs/", ".venv/")
"""What commands make is not there before they ran."""
PLACEHOLDERS = {"NAME", "STAGE"}
SHOWN = re.compile(r"^```\w+\n# ([\w./-]+)$", re.MULTILINE)
"""A file that a document shows whole, its path in a comment at the top; tests/test_pages.py writes and uses it."""


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths of recipes and documents are counted from the root of the repository."""
    monkeypatch.chdir(ROOT)


def commands(document: Path) -> list[list[str]]:
    """The words of every command in the document's bash fences, without comments and assignments before it."""
    found = []
    for language, text in FENCE.findall(document.read_text(encoding="utf-8")):
        if language not in ("bash", "sh", "shell"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";&|()"):
                    found += [words] if words else []
                    words = []
                elif words or not re.fullmatch(r"\w+=.*", word):
                    words.append(word)
    return found


def every_command() -> list:
    return [
        pytest.param(words, id=f"{document}: {shlex.join(words)[:80]}")
        for document in DOCUMENTS
        for words in commands(ROOT / document)
    ]


def test_the_documents_a_newcomer_needs_are_there() -> None:
    assert {Path("README.md"), Path("CONTRIBUTING.md")} <= set(DOCUMENTS)
    assert all(folder / "README.md" in DOCUMENTS for folder in RECIPES)
    assert len(every_command()) > 5


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """fledge's commands stop short of their work, but read recipes, options and keys as ever; who was called."""
    called: list[str] = []

    def instead(name: str):
        return lambda *_, **__: called.append(name)

    def room(module: str) -> SimpleNamespace:
        assert (
            Path(import_module("fledge").__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
        )
        return SimpleNamespace(main=instead(module.rpartition(".")[2]))

    monkeypatch.setattr(cli, "import_module", room)
    for module, name in (
        ("launching.chain", "run"),
        ("launching.launch", "launch"),
        ("results.report", "report"),
        ("chat.terminal", "chat"),
        ("chat.web", "serve"),
        ("inspecting.report", "inspect"),
        ("planning.terminal", "show"),
        ("publishing.terminal", "publish"),
    ):
        monkeypatch.setattr(f"fledge.{module}.{name}", instead(name))
    return called


def fledge(words: list[str], called: list[str]) -> None:
    """Run a command of the documents up to where its work begins."""
    assert cli.main(words) in (0, None), f"fledge {shlex.join(words)}"
    assert called or words[0].startswith("--") or words[-1] == "--help"
    for option, value in pairwise(words):
        if option in ("--on", "--config_file"):
            read_layout(find_layout(value))
    if words[0] == "launch":
        assert read_folder(Path(words[1])) if Path(words[1]).is_dir() else one_recipe(Path(words[1]), [])
    if words[0] == "run":
        names = [recipe.name for recipe in read_folder(Path(words[1]))]
        assert {words[words.index(option) + 1] for option in ("--only", "--from") if option in words} <= set(names)


@pytest.mark.parametrize("words", every_command())
def test_commands_of_the_documents_work(words: list[str], ran: list[str]) -> None:
    program, rest = Path(words[0]).name, words[1:]
    if program == "fledge":
        fledge(rest, ran)
    elif program == "accelerate":
        assert rest[0] == "launch" and "-m" in rest and rest[rest.index("-m") + 1] == "fledge"
        layout = Path(rest[rest.index("--config_file") + 1])
        assert layout in LAYOUTS
        fledge(rest[rest.index("-m") + 2 :], ran)
    elif program == "make":
        targets = [word for word in rest if not word.startswith("-") and "=" not in word]
        done = subprocess.run(["make", "-n", *targets], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program in ("python", "python3") and rest[:1] == ["-c"]:
        compile(rest[1], "document", "exec")
    elif program in ("python", "python3") and rest[:1] == ["-m"]:
        assert import_module("importlib.util").find_spec(rest[1]), f"no module {rest[1]}"
    else:
        beside = Path(sys.executable).with_name(program)  # of a virtual environment that is not activated
        assert shutil.which(program) or beside.is_file(), f"no program {program}"


def named_paths(document: Path) -> Iterator[str]:
    """Everything in a document that reads as a path of this repository."""
    text = document.read_text(encoding="utf-8")
    shown = {Path(name) for name in SHOWN.findall(text)}
    shown |= {path.parent for path in shown}
    fences = [fence for language, fence in FENCE.findall(text) if language != "diff"]
    words = [word for fence in fences for word in re.split(r"[\s'\"=]+", fence)]
    words += [word for code in CODE.findall(FENCE.sub("", text)) for word in code.split()]
    for word in words:
        word = word.strip(",;:()").removeprefix("./")
        given = word.startswith(MADE) or Path(word).stem in PLACEHOLDERS or Path(word) in shown
        if PATH.fullmatch(word) and not given:
            known = (ROOT / word.split("/")[0]).exists() or (document.parent / word.split("/")[0]).exists()
            if known or Path(word).suffix in SUFFIXES:
                yield word


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_paths_in_the_documents_exist(document: Path) -> None:
    near = (ROOT, ROOT / document.parent, ROOT / "src" / "fledge")
    missing = [
        path for path in named_paths(document) if not any(list(folder.glob(path.rstrip("/"))) for folder in near)
    ]

    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_in_the_documents_lead_somewhere(document: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(document.read_text(encoding="utf-8"))]
    missing = [target for target in targets if "://" not in target and not (document.parent / target).exists()]

    assert not missing


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_stages_of_a_recipe_chain(folder: Path) -> None:
    made: list[Path] = []
    for recipe in read_folder(folder):
        inputs = {path for key, value in recipe.values.items() if key != "output_dir" for path in run_paths(value)}
        # The tiny recipe has no corpus stage: its tests put the corpus there.
        given = {path for path in inputs if folder.name == "tiny" and "corpus" in path.parts}
        early = {path for path in inputs - given if not any(path.is_relative_to(folder) for folder in made)}
        assert not early, f"{recipe.path} reads what nothing before it makes"
        assert recipe.output_dir not in made, f"{recipe.path} writes where another stage does"
        assert recipe.output_dir.is_relative_to(Path("runs") / folder.name)
        made.append(recipe.output_dir)
    files = [path for path in folder.glob("*.yaml") if path.name != SMOKE]
    assert len(made) == len(files), "a file whose name begins with no stage"


def run_paths(value: object) -> Iterator[Path]:
    """The paths below runs/ in a recipe's value."""
    if isinstance(value, str) and value.startswith("runs/"):
        yield Path(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from run_paths(item)


@pytest.mark.parametrize("folder", SMALL, ids=str)
def test_a_smoke_run_needs_no_hub_and_touches_no_real_run(folder: Path) -> None:
    for recipe in read_folder(folder, smoke=True):
        for key in ("tokenizer", "base_tokenizer", "model_name_or_path", "prepared", "pairs", "output_dir"):
            assert recipe.values.get(key, SMOKE_RUNS).startswith(SMOKE_RUNS), f"{recipe.path}: {key}"
        entries = [entry for value in recipe.values.values() if isinstance(value, list) for entry in value]
        paths = [entry["path"] for entry in entries if isinstance(entry, dict) and "path" in entry]
        assert all(path.startswith(SMOKE_RUNS) for path in paths), f"{recipe.path}: {paths}"
        assert all(path.startswith(SMOKE_RUNS) for path in recipe.values.get("models", {}).values()), recipe.path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_recipes_are_right_and_point_editors_at_their_schema(path: Path) -> None:
    stage = path.stem.partition("_")[0]
    load_recipe(stage, path.relative_to(ROOT))

    first = path.read_text(encoding="utf-8").partition("\n")[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "src" / "fledge" / "schema" / f"{stage}.json"
    assert (path.parent / schema).is_file()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_load_and_start_as_many_processes_as_their_name_says(layout: Path) -> None:
    named = re.search(r"(\d+)(?:proc|x)", layout.stem)
    config = load_config_from_file(str(layout))

    assert config.num_processes == (int(named[1]) if named else 1)
    # accelerate starts a single process, whatever num_processes says, where the type is NO.
    assert (str(config.distributed_type.value) == "NO") == (config.num_processes == 1)
    assert config.use_cpu == layout.stem.startswith("cpu")
    # The recipe decides the precision.
    assert config.mixed_precision == "no"


def test_a_document_that_lies_is_caught(tmp_path: Path, ran: list[str]) -> None:
    document = tmp_path / "lies.md"
    document.write_text(
        "See [this](nowhere.md) and `src/fledge/nowhere.py`.\n\n"
        "```bash\nA=1 fledge run recipes/nowhere && make no  # x\n```\n"
    )

    assert list(named_paths(document)) == ["recipes/nowhere", "src/fledge/nowhere.py"]
    assert commands(document) == [["fledge", "run", "recipes/nowhere"], ["make", "no"]]
    with pytest.raises((ValueError, AssertionError)):
        fledge(["run", "recipes/nowhere"], ran)
    with pytest.raises(AssertionError):
        fledge(["pretrain", "recipes/tang-poems/pretrain.yaml", "--max_stebs", "1"], ran)
