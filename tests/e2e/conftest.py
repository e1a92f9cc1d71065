"""A workspace with real text in it, and the tiny chain run once in it: both made once for all workers of a session."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from fledge.corpora import tang

from .workspace import ROOT, TINY, Workspace


ROWS = {
    "poems/train": slice(300),
    "poems/heldout": slice(40),
    "chat/train": slice(200),
    "chat/heldout": slice(20),
    "requests/train": slice(60),
    "requests/heldout": slice(0, None, 50),  # 16, of every form
}
"""What the tiny recipe gets of each file of the corpus."""


TOKEN = "hf_" + "Planted" * 5
"""In the environment of the chain: test_secrets.py looks for it in all that the chain leaves."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all pytest-xdist workers of this session see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "e2e"
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by whichever worker comes first; the others wait."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def fresh(shared: Path) -> Workspace:
    """The tiny recipe and a corpus of a few hundred poems; nothing has run. Not to be changed: copy it."""
    return Workspace(once(shared / "fresh", furnish))


def furnish(folder: Path) -> None:
    """Recipes, layouts, templates and a small corpus, out of the real package."""
    for name in ("chat_templates", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copytree(Path(__file__).parent / "tiny", folder / TINY)
    whole = folder.with_name("corpus")
    tang.build(whole)
    for name, rows in ROWS.items():
        table = pq.read_table(whole / f"{name}.parquet")
        target = folder / "runs/tiny/corpus" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(list(range(len(table))[rows])), target)
    shutil.rmtree(whole)


@pytest.fixture(scope="session")
def chain(shared: Path, fresh: Workspace) -> Workspace:
    """Where `fledge run recipes/tiny` ran to its end; output.txt has what it printed. Not to be changed: copy it."""

    def make(folder: Path) -> None:
        workspace = fresh.copy(folder)
        done = workspace.fledge("run", TINY, HF_TOKEN=TOKEN)
        (folder / "output.txt").write_text(done.text, encoding="utf-8")

    return Workspace(once(shared / "chain", make))


@pytest.fixture
def mine(chain: Workspace, tmp_path: Path) -> Workspace:
    """A finished chain of the test's own."""
    return chain.copy(tmp_path / "workspace")
