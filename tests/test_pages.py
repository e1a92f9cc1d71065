"""The pages of docs/ and the notebook: what they show runs and prints what they say, and the site builds cleanly."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from sphinx.cmd.build import main as sphinx_build

from fledge import cli, schema
from fledge.arguments import STAGES
from fledge.launching.plan import read_folder
from fledge.layouts import read_layout
from fledge.schema.check import faults


ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

FENCE = re.compile(r"^```([\w{}]*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./-]+\.(?:yaml|py))\n")
CHECKED = {"bash", "console", "diff", "python", "yaml", "text"}
"""Kinds of fences that a test looks into, and text, which nothing runs; {directives} are the build's."""
COLUMNS = "88"


def fences(page: Path, language: str) -> list[str]:
    """The texts of a page's fences of one language."""
    return [text for found, _, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def files(page: Path) -> dict[str, str]:
    """The files a page shows whole: the first line of a YAML or Python fence is a comment with its path."""
    texts = fences(page, "yaml") + fences(page, "python")
    return {found[1]: text for text in texts if (found := NAMED.match(text))}


def dialogue(page: Path) -> list[tuple[str, str]]:
    """The commands of a page's console fences, here-documents included, and what they are said to print."""
    found: list[tuple[list[str], list[str]]] = []
    for text in fences(page, "console"):
        until = None
        for line in text.splitlines():
            if until is not None:
                found[-1][0].append(line)
                until = None if line == until else until
            elif line.startswith("$ "):
                found.append(([line[2:]], []))
                here = re.search(r"<<'(\w+)'", line)
                until = here[1] if here else None
            else:
                found[-1][1].append(line)
    return [("\n".join(command), "\n".join(output)) for command, output in found]


def agree(said: str, printed: str) -> bool:
    """Whether the two are equal but for white space at the ends of lines; a line of three dots stands for any."""
    lines = [re.escape(line.rstrip()) + r"\n" if line != "..." else r"(?:.*\n)*?" for line in said.splitlines()]
    text = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    return re.fullmatch("".join(lines), text) is not None


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone, for the commands of a page to work in."""
    for name in ("recipes", "accelerate_configs", "chat_templates"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", COLUMNS)
    monkeypatch.setattr(cli, "listen", lambda: None)
    monkeypatch.setattr(cli, "log_progress", lambda: None)
    return tmp_path


def write(page: Path, folder: Path) -> list[Path]:
    """Write the files that a page shows."""
    paths = [folder / name for name in files(page)]
    for path, text in zip(paths, files(page).values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_fence_goes_unchecked(page: Path) -> None:
    languages = {language for language, _, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert {language for language in languages if not language.startswith("{")} <= CHECKED
    assert not fences(page, "python") or page.name == "add-a-stage.md"


@pytest.mark.parametrize("page", [page for page in PAGES if dialogue(page)], ids=lambda page: page.name)
def test_commands_print_what_a_page_says(page: Path, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(page, checkout)
    code = 0
    for command, said in dialogue(page):
        if command == "echo $?":
            printed = str(code)
        elif command.startswith("fledge "):
            capsys.readouterr()
            code = cli.main(command.split()[1:])
            captured = capsys.readouterr()
            printed = captured.err if code else captured.out
        else:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
            code, printed = done.returncode, done.stdout

        assert agree(said, printed), f"{page.name}: $ {command}\n{printed}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if files(page) and page.name != "add-a-stage.md"],
    ids=lambda page: page.name,
)
def test_recipes_and_layouts_of_a_page_are_right(page: Path, checkout: Path) -> None:
    folders = set()
    for path in write(page, checkout):
        if path.parent.name == "accelerate_configs":
            read_layout(path)
        elif path.parent.name == "wrong":
            with pytest.raises(ValueError, match=path.name):
                read_folder(path.parent)
        else:
            folders.add(path.parent)
    for folder in folders:
        names = [recipe.name for recipe in read_folder(folder)]
        assert names == sorted(names, key=[path.stem for path in write(page, checkout)].index)  # as `fledge run` goes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parts_of_a_recipe_fit_a_stage(page: Path) -> None:
    for text in fences(page, "yaml"):
        if NAMED.match(text) is None:
            part = yaml.safe_load(text)
            stages = [{**schema.load(stage), "required": []} for stage in STAGES]
            assert any(not list(faults(part, stage)) for stage in stages), text


@pytest.mark.slow
def test_the_stage_that_a_page_adds_works(tmp_path: Path) -> None:
    page = ROOT / "docs" / "add-a-stage.md"
    for name in ("src", "tests", "chat_templates"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    write(page, tmp_path)
    (tmp_path / "stage.diff").write_text(patch(page), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}

    for command in (
        ["git", "apply", "stage.diff"],
        [sys.executable, "-m", "fledge.schema"],
        [sys.executable, "-m", "pytest", "-q", "tests/test_average.py", "tests/test_rooms.py"],
        [sys.executable, "-m", "fledge", "average", "--help"],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "models: a list; required" in done.stdout


def test_the_changes_of_that_page_fit_the_source(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "stage.diff").write_text(patch(ROOT / "docs" / "add-a-stage.md"), encoding="utf-8")

    subprocess.run(["git", "apply", "--check", "stage.diff"], cwd=tmp_path, check=True)


def patch(page: Path) -> str:
    """The changes a page shows, as one file."""
    (text,) = fences(page, "diff")
    return text


def test_the_site_builds_without_a_warning_and_knows_every_key(tmp_path: Path) -> None:
    # Links between pages and to headings are warnings too; those to other hosts are not followed.
    options = ["-W", "--keep-going", "--nitpicky", "--quiet", "-b", "html"]
    assert sphinx_build([*options, str(ROOT / "docs"), str(tmp_path)]) == 0

    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {page.stem for page in PAGES} <= set(pages)
    for stage in STAGES:
        listed = re.findall(r'<dt[^>]*><code[^>]*><span class="pre">(\w+)</span>', pages["keys"])
        assert set(schema.load(stage)["properties"]) <= set(listed), stage
    named = re.findall(r'<span class="pre">(\w+)</span>', pages["keys"])
    assert set(schema.load("pretrain")["properties"]["model_config"]["properties"]) <= set(named)
    for command in cli.OTHERS:
        assert f"usage: fledge {command}" in pages["commands"]
    for name, text in pages.items():
        fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="([^"]+)"', text)
        assert not [source for source in fetched if "//" in source], name


def table(heading: str) -> list[tuple[set[str], set[str]]]:
    """The keys in each row of a table of moving.md, theirs and ours: code that is a name, or a name and a value."""
    text = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    rows = re.findall(r"^\| (?!---)(.*) \| (.*) \|$", text.partition("\n## ")[0], re.MULTILINE)[1:]
    return [tuple(set(re.findall(r"`([a-z]\w*)(?::[^`]*)?`", cell)) for cell in row) for row in rows]


HEADINGS = ("From the alignment handbook", "From TRL's command line", "From nanochat", "From litgpt")


@pytest.mark.parametrize("heading", HEADINGS)
def test_keys_that_people_move_to_are_ours(heading: str) -> None:
    tops = [schema.load(stage)["properties"] for stage in STAGES]
    known = {name for keys in tops for name in keys}
    known |= {*schema.load("prepare")["properties"]["datasets"]["items"]["properties"]}
    known |= {*schema.load("pretrain")["properties"]["model_config"]["properties"]}
    values = {"wrapped", "bfd"}

    ours = set().union(*(ours for _, ours in table(heading)))
    assert len(ours) > 5 and ours <= known | values


def test_keys_that_people_leave_behind_are_trls() -> None:
    import trl
    from trl.scripts.utils import DatasetConfig

    classes = (trl.SFTConfig, trl.ModelConfig, trl.ScriptArguments, trl.DatasetMixtureConfig, DatasetConfig)
    theirs = set().union(*(theirs for theirs, _ in table("From TRL's command line")))

    assert len(theirs) > 10
    assert theirs <= {field.name for cls in classes for field in fields(cls)} | {"kto", "reward", "rloo"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_its_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]

    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    assert all("id" in cell for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(notebook: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    read = nbformat.read(notebook, as_version=4)
    NotebookClient(read, timeout=900, resources={"metadata": {"path": str(checkout)}}).execute()

    assert not [output for cell in read.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
