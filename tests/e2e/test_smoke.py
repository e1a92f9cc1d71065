"""`fledge run recipes/<system> --smoke`: the shipped recipes, every stage through the real launcher."""

import shutil
from pathlib import Path

import pytest

from fledge.files import read_json
from fledge.launching.plan import read_folder

from .workspace import ROOT, Workspace


QUICK = ("lillm", "prem-1b")
"""The cheapest two that have every stage between them; the others take minutes and run at night."""
SYSTEMS = sorted(path.parent.name for path in ROOT.glob("recipes/*/smoke.yaml"))


@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SYSTEMS]
)
def test_every_stage_of_a_system_runs(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chat_templates", "accelerate_configs", f"recipes/{system}"):
        shutil.copytree(ROOT / name, tmp_path / name)
    workspace = Workspace(tmp_path)

    done = workspace.fledge("run", f"recipes/{system}", "--smoke")

    monkeypatch.chdir(tmp_path)
    recipes = read_folder(Path("recipes") / system, smoke=True)
    assert list(done.steps()) == [recipe.name for recipe in recipes]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]
    assert "a smoke run" in done.out.splitlines()[0]
    for recipe in recipes:
        summary, recorded = (
            read_json(tmp_path / recipe.output_dir / name) for name in ("summary.json", "recipe.json")
        )
        assert summary["name"] == recipe.name
        # What the stage was given is what smoke.yaml says.
        plain = {key: value for key, value in recipe.values.items() if isinstance(value, str | int)}
        assert {key: recorded[key]["value"] for key in plain} == plain
        assert all(recorded[key]["from"] == source for key, source in recipe.sources.items())
        if "max_steps" in plain:
            assert summary["results"]["steps"] == plain["max_steps"]
