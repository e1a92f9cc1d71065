"""`push_to_hub` with a hub that is well, down, slow or refuses: training does not notice, and nothing is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from fledge.publishing.outbox import FILES
from fledge.training.hub import Courier

from .hub import Hub, hub
from .nursery import KILL, Lived, Nursery, nursery
from .workspace import ROOT, TINY, Workspace, losses, sha256


TOKEN = "hf_" + "Homing" * 6
REPO = "bird/egg"
RECIPE = f"{TINY}/pretrain.yaml"
OUTPUT = "runs/tiny/pushed"
PUSH = ["--push_to_hub", "true", "--hub_model_id", REPO]
REVISIONS = {"main", "step-4", "step-8", "step-12"}
NOWHERE = "http://127.0.0.1:9"

MOODS: dict[str, tuple[str | int, dict[int, str | int], str]] = {
    "401": (401, {}, "401"),
    "429": (429, {}, "429"),
    "500": (500, {}, "500"),
    "hanging": ("hanging", {}, "the hub did not answer within 4 s"),
    "rejecting": ("rejecting", {}, "422 this repository takes no more"),
    "fails-midway": ("well", {1: 500}, "500"),
    "hangs-midway": ("well", {1: "hanging"}, "the hub did not answer within 4 s"),
    "fails-at-the-end": ("well", {3: 429}, "429"),
}
QUICK = ("hanging", "fails-midway")


@pytest.fixture(scope="module")
def forks(chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery"), chain.environment()) as found:
        yield found


@pytest.fixture
def loopback() -> Iterator[Hub]:
    with hub() as found:
        yield found


def train(mine: Workspace, forks: Nursery, environment: dict[str, str], patience: float = 120, **fault: Any) -> Lived:
    command = ("pretrain", RECIPE, *PUSH, "--output_dir", OUTPUT, "--hub_timeout", f"{patience:g}")
    return forks.run(mine.folder, *command, watched=OUTPUT, **fault, **environment)


def is_the_unbroken_run(workspace: Workspace) -> None:
    """Losses, gradients and weights are those of the chain, which pushed nothing."""
    folder = workspace.folder / OUTPUT
    for key in ("loss", "grad_norm", "eval_loss"):
        assert losses(folder, key) == losses(workspace.run_folder / "pretrain", key)
    assert sha256(folder / "model.safetensors") == workspace.weights()["pretrain"]


def has_arrived(workspace: Workspace, loopback: Hub) -> None:
    """Every save has a revision with the weights of that step, all are tagged, and only what may be there is."""
    repo = loopback.repos[REPO]
    assert {*repo} == REVISIONS
    for files in repo.values():
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {*files} <= {*FILES}
        assert json.loads(files["config.json"])["model_type"] == "llama"
    folder = workspace.folder / OUTPUT
    for revision, path in {"main": folder, "step-12": folder / "checkpoint-12"}.items():
        assert repo[revision]["model.safetensors"] == (path / "model.safetensors").read_bytes()
    assert repo["step-4"]["model.safetensors"] != repo["step-8"]["model.safetensors"]
    assert {*loopback.tags[REPO].values()} == REVISIONS - {"main"}
    assert all(tag.startswith("tokens-") for tag in loopback.tags[REPO])
    # Only waiting and its journal are left, and the token is nowhere.
    assert {path.name for path in (folder / "outbox").iterdir()} == {"journal.jsonl", ".lock"}
    assert loopback.tokens <= {f"Bearer {TOKEN}", None}
    files = (path for path in workspace.folder.rglob("*") if path.is_file())
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_hub_that_is_well_gets_every_save(mine: Workspace, forks: Nursery, loopback: Hub) -> None:
    done = train(mine, forks, loopback.environment(TOKEN))

    assert done.code == 0, done.text
    is_the_unbroken_run(mine)
    has_arrived(mine, loopback)
    assert loopback.commits[-1] == (REPO, "main")


@pytest.mark.parametrize(
    "mood", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOODS]
)
def test_training_does_not_notice_a_hub_that_fails(mine: Workspace, forks: Nursery, loopback: Hub, mood: str) -> None:
    loopback.mood, loopback.after, why = MOODS[mood]

    hangs = "hanging" in (loopback.mood, *loopback.after.values())
    done = train(mine, forks, loopback.environment(TOKEN), patience=4 if hangs else 120)

    assert done.code == 69, done.text
    assert "trained, and not pushed: " in done.text
    assert why in done.text and "Traceback" not in done.text and TOKEN not in done.text
    is_the_unbroken_run(mine)
    loopback.mood, loopback.after = "well", {}
    sent = mine.fledge("publish", OUTPUT, **loopback.environment(TOKEN))
    assert f"{REPO} main: pushed" in sent.out and "4 revision(s) have arrived" in sent.out
    has_arrived(mine, loopback)


def test_a_hub_that_is_not_there_from_the_first_moment(mine: Workspace, forks: Nursery, loopback: Hub) -> None:
    nowhere = {**loopback.environment(TOKEN), "HF_ENDPOINT": NOWHERE}
    done = train(mine, forks, nowhere, patience=4)
    assert done.code == 69, done.text
    is_the_unbroken_run(mine)

    still = mine.fledge("publish", OUTPUT, code=69, **nowhere)
    assert "4 revision(s) still wait" in still.err and "Traceback" not in still.text
    listed = mine.fledge("publish", OUTPUT, "--dry-run", **nowhere)
    assert f"{REPO} step-8, tag tokens-" in listed.out and "model.safetensors" in listed.out
    mine.fledge("publish", "runs/tiny", **loopback.environment(TOKEN))
    has_arrived(mine, loopback)
    again = mine.fledge("publish", OUTPUT, **loopback.environment(TOKEN))
    assert "nothing waits; 4 revision(s) have arrived" in again.out


@pytest.mark.parametrize(
    "part", [0, pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_killed_while_it_pushes_every_revision_arrives(
    mine: Workspace, forks: Nursery, loopback: Hub, part: int
) -> None:
    at = 30 + 60 * part  # of 231 changes of the folder, those of the outbox among them

    assert train(mine, forks, loopback.environment(TOKEN), kind=KILL, at=at).code == -9
    done = train(mine, forks, loopback.environment(TOKEN))

    assert done.code == 0, done.text
    is_the_unbroken_run(mine)
    has_arrived(mine, loopback)


def test_a_pushing_process_that_dies_is_started_again(
    chain: Workspace, loopback: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in loopback.environment(TOKEN).items():
        monkeypatch.setenv(key, value)
    args = TrainingArguments(str(tmp_path / "run"), push_to_hub=True, hub_model_id=REPO, use_cpu=True)
    courier = Courier(args, seconds=120)
    first = courier._process
    first.kill()
    first.wait()

    courier.put(chain.run_folder / "pretrain", step=4, tokens=6144)
    courier.go()

    assert courier._process.pid != first.pid
    courier._process.kill()  # with a revision before it, or in its hands
    courier.put(chain.run_folder / "pretrain")
    courier.finish()
    assert {*loopback.repos[REPO]} == {"main", "step-4"} and loopback.tags[REPO] == {"tokens-6144": "step-4"}


@pytest.mark.parametrize("layout", ["cpu", pytest.param("cpu_2proc", marks=pytest.mark.slow)])
def test_a_chain_goes_on_and_says_so_in_the_end(mine: Workspace, loopback: Hub, layout: str) -> None:
    """Under `fledge run`, through accelerate's launcher, whose own exit code says nothing."""
    with (mine.folder / RECIPE).open("a") as recipe:
        recipe.write(f"push_to_hub: true\nhub_model_id: {REPO}\nhub_strategy: end\nhub_timeout: 60\n")
    before = mine.weights()
    loopback.mood = 401

    words = ["run", TINY, "--only", "pretrain", "--on", f"accelerate_configs/{layout}.yaml"]
    run = mine.fledge(*words, code=69, **loopback.environment(TOKEN))

    assert "trained, and not pushed: pretrain; fledge publish runs/tiny sends what waits" in run.out
    assert run.text.count("trained, and not pushed: 1 revision(s) wait") >= 1 and "Traceback" not in run.text
    assert mine.results("pretrain")["processes"] == (2 if layout == "cpu_2proc" else 1)
    assert layout == "cpu_2proc" or mine.weights() == before
    mine.fledge("publish", "runs/tiny/pretrain", code=69, **loopback.environment(TOKEN))
    loopback.mood = "well"
    mine.fledge("publish", "runs/tiny", **loopback.environment(TOKEN))
    assert {branch: {*files} != set() for branch, files in loopback.repos[REPO].items()} == {"main": True}
    assert {*mine.fledge("run", TINY).steps().values()} == {"unchanged, skipped"}


def test_a_run_is_published_with_a_card_of_its_own_records(chain: Workspace, mine: Workspace, loopback: Hub) -> None:
    environment = loopback.environment(TOKEN)
    before = mine.files()
    shown = mine.fledge("publish", "runs/tiny", "--to", "bird/tiny", "--dry-run", **environment)
    assert mine.files() == before and loopback.repos == {}

    mine.fledge("publish", "runs/tiny", "--to", "bird/tiny", "--private", **environment)

    assert loopback.private == {"bird/tiny": True}
    files = loopback.repos["bird/tiny"]["main"]
    text = files.pop("README.md").decode()
    assert text.strip() in shown.out and all(name in shown.out for name in files)
    export = mine.run_folder / "export"
    assert files == {name: (export / name).read_bytes() for name in files} and "model.safetensors" in files
    card = ModelCard(text)
    scores = mine.json("evaluate", "evaluation.json")["dpo"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {key: scores[key] for key in found} and {"bits_per_char", "stop_rate"} <= {*found}
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    tokens = f"{mine.json('prepare', 'manifest.json')['train']['tokens']:,}"
    for row in (
        f"| Parameters | {mine.results('pretrain')['parameters']:,} |",
        f"| poems/train.parquet | 300 | {tokens} | {tokens} | 100.0% | 1 |",
        "| learning_rate | 0.003 |",
        "| \\<\\|end\\|\\> | 2 |",
    ):
        assert row in text, row
    assert str(mine.folder) not in text and str(ROOT) not in text
    assert {*mine.fledge("run", TINY, **environment).steps().values()} == {"unchanged, skipped"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/tiny"], "nothing waits for the hub; `push_to_hub: true`"),
        (["runs/nest"], "publish: runs/nest: no such folder"),
        (["runs/tiny", "--to", "egg"], "--to: 'egg': where to push; write owner/name"),
        (["runs/tiny/prepare", "--to", REPO], "no model there; run the export stage"),
    ],
)
def test_what_cannot_be_published(chain: Workspace, arguments: list[str], message: str) -> None:
    refused = chain.fledge("publish", *arguments, code=2)
    assert message in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hub_model_id", "egg"], "hub_model_id: 'egg': where to push; write owner/name"),
        (["--hub_model_id", REPO, "--hub_strategy", "checkpoint"], "hub_strategy: checkpoint would push optimizer"),
        (["--hub_model_id", REPO, "--hub_revision", "step"], "hub_revision: nothing is left out"),
        (["--hub_model_id", REPO], "push_to_hub: no token; log in with `hf auth login`"),
    ],
)
def test_what_cannot_be_pushed_is_known_before_training(
    mine: Workspace, forks: Nursery, options: list[str], message: str
) -> None:
    command = ("pretrain", RECIPE, "--push_to_hub", "true", *options, "--output_dir", OUTPUT)
    done = forks.run(mine.folder, *command, watched=OUTPUT, HF_TOKEN="")
    assert done.code == 2 and message in done.text, done.text
    assert not (mine.folder / OUTPUT).exists()
