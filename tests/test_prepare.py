"""The prepare stage: the same rows however they are made, nothing lost, cut or repeated without being counted."""

import os
import pickle
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONVERSATIONS, TEXTS, conversation, prepared, recipe, write_lines
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from fledge.data import prepared as prepared_module
from fledge.data import shards, work
from fledge.data.collate import PackedCollator
from fledge.data.prepared import PreparedRows, as_hugging_face, load_prepared
from fledge.data.sources import Row, place_of
from fledge.data.tokenise import Tokeniser, render
from fledge.files import read_json
from fledge.stages import prepare


LENGTH = 96
SAID = [{"role": "assistant", "content": "yes"}]


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of text that differ in length, some longer than a row."""
    chance = random.Random(seed)
    return [
        {"text": " ".join(chance.choices(TEXTS, k=chance.choice((1, 2, 9)))) + f" {seed}:{i}"} for i in range(count)
    ]


def chats(count: int) -> list[dict[str, Any]]:
    return [conversation(f"Number {i}?", TEXTS[i % len(TEXTS)][:20], "And?", f"{i + 1}") for i in range(count)]


def manifest_of(folder: Path) -> dict[str, Any]:
    return read_json(folder / "manifest.json")


def documents_in(folder: Path, split: str = "train") -> list[tuple[list[int], list[int]]]:
    """Ids and labels of every document on disk, read from the shards and nothing else."""
    manifest = manifest_of(folder)
    found = []
    for shard in manifest[split]["shards"]:
        stem = folder / split / shard["name"]
        ids = np.fromfile(stem.with_suffix(".ids"), manifest["id_type"]).astype(int)
        mask = np.unpackbits(np.fromfile(stem.with_suffix(".mask"), np.uint8), bitorder="little")[: len(ids)]
        end = 0
        for length, supervised, _ in np.fromfile(stem.with_suffix(".documents"), np.uint32).reshape(-1, 3).tolist():
            start, end = end, end + length
            labels = np.where(mask[start:end], ids[start:end], -100)
            assert np.count_nonzero(labels != -100) == supervised
            found.append((ids[start:end].tolist(), labels.tolist()))
    return found


# --- the same ids


@pytest.fixture
def mixed(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Prepares 40 texts, 40 chats and a held-out file into a folder of that name; returns the manifest."""
    monkeypatch.setattr(work, "ROWS_PER_SHARD", 7)
    sources = {"texts": texts(40), "chats": chats(40), "heldout": texts(9, seed=1)}
    files = {name: str(write_lines(tmp_path / f"{name}.jsonl", rows)) for name, rows in sources.items()}

    def make(folder: str, **keys: Any) -> dict[str, Any]:
        entries = [{"path": files[name], "name": name} for name in ("texts", "chats")]
        stated = {"datasets": entries, "eval_datasets": [{"path": files["heldout"]}], "tokenizer": tokenizer_folder}
        stated |= {"max_length": LENGTH, "output_dir": tmp_path / folder, **keys}
        made = recipe(tmp_path, "prepare", **stated)
        prepare.main(made)
        return manifest_of(made.output_dir)

    return make


def test_the_same_whatever_processes_batches_tasks_or_folder(
    mixed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = mixed("one", num_proc=1)
    assert len(one["train"]["shards"]) == 12 and len(one["eval"]["shards"]) == 2
    assert one["train"]["sha256"] != one["eval"]["sha256"]
    assert mixed("two", num_proc=2) == one
    assert mixed("one", num_proc=1) == one  # everything finished already
    for tasks in (1, 2, 7):
        assert mixed(f"tasks{tasks}", executor="local", tasks=tasks, num_proc=1) == one
    monkeypatch.setattr(shards, "BATCH_ROWS", 2)
    monkeypatch.chdir(tmp_path)
    assert mixed("batches", num_proc=1) == one
    assert mixed("seed", num_proc=1, seed=1)["train"]["sha256"] != one["train"]["sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(("executor", "tasks"), [("local", 7), ("ray", 2), ("ray", 7)])
def test_the_same_from_real_executors(mixed: Callable[..., dict[str, Any]], executor: str, tasks: int) -> None:
    one = mixed("one", num_proc=1)
    assert mixed(executor, executor=executor, tasks=tasks, num_proc=2) == one


def test_ids_and_masks_are_those_of_the_tokenizer_and_of_render(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [*CONVERSATIONS, *chats(20)]
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    expected = []
    for row in rows:
        ids, mask = render(tokenizer, row["messages"])
        expected.append((ids, [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]))
    assert documents_in(prepared(tmp_path / "chats", tokenizer, rows, max_length=LENGTH)) == expected
    for row in texts(20):
        ids = begin + tokenizer(row["text"], add_special_tokens=False)["input_ids"] + end
        expected.append((ids, [-100, *ids[1:]]))
    assert documents_in(prepared(tmp_path / "texts", tokenizer, texts(20), max_length=LENGTH)) == expected[-20:]


# --- going on after an interruption


def test_interrupted_work_goes_on_at_the_shard(
    mixed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = mixed("whole", num_proc=1)
    made: list[int] = []
    breaks_at = [6]
    write = shards.Maker._write

    def interrupted(self: shards.Maker, rows: Any, files: Any) -> dict[str, int]:
        made.append(1)
        sizes = write(self, rows, files)
        if breaks_at == [len(made)]:
            raise KeyboardInterrupt
        return sizes

    monkeypatch.setattr(shards.Maker, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mixed("cut", num_proc=1)
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        load_prepared(tmp_path / "cut")
    breaks_at.clear()
    assert mixed("cut", num_proc=1) == whole
    assert len(made) == 6 + 14 - 5  # five of fourteen shards were finished
    assert not list((tmp_path / "cut").rglob("*.partial"))

    ids = tmp_path / "cut" / "train" / "00003.ids"
    ids.write_bytes(bytes([ids.read_bytes()[0] ^ 1]) + ids.read_bytes()[1:])
    made.clear()
    assert mixed("cut", num_proc=1) == whole and len(made) == 1
    made.clear()
    mixed("cut", num_proc=1, seed=5, repeats="drop", max_overlong_ratio=0.5)  # no shard depends on these
    assert not made
    mixed("cut", num_proc=1, max_length=LENGTH + 1)
    assert len(made) == 14


def test_files_of_an_earlier_larger_run_go(mixed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    mixed("out", num_proc=1)
    fewer = [{"path": str(tmp_path / "chats.jsonl")}]
    manifest = mixed("out", num_proc=1, datasets=fewer)
    stems = {path.stem for path in (tmp_path / "out" / "train").iterdir()}
    assert stems == {shard["name"] for shard in manifest["train"]["shards"]} | {"documents", "pieces", "rows"}


# --- what training reads


def test_rows_are_mapped_picklable_and_the_same_in_workers_and_in_trl_s_wrapper(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(prepared_module, "OPEN_SHARDS", 2)
    folder = prepared(tmp_path, tokenizer, texts(60), max_length=LENGTH)
    rows, heldout, manifest = load_prepared(folder)
    assert heldout is None and len(manifest["train"]["shards"]) == 6
    batches = [PackedCollator(LENGTH, tokenizer.pad_token_id)([rows[i]]) for i in range(len(rows))]
    assert len(pickle.dumps(rows)) < 500
    for dataset in (rows, pickle.loads(pickle.dumps(rows)), as_hugging_face(rows)):
        loader = DataLoader(dataset, 1, collate_fn=PackedCollator(LENGTH, tokenizer.pad_token_id), num_workers=2)
        for read, expected in zip(loader, batches, strict=True):
            assert all(torch.equal(read[name], expected[name]) for name in expected)
    supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert manifest["train"]["supervised_tokens"] == supervised
    assert rows[-1]["input_ids"].tolist() == rows[len(rows) - 1]["input_ids"].tolist()
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_the_collator_takes_lists_too() -> None:
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "seq_lengths": [2, 1]}
    batch = PackedCollator(5, 0)([row, {name: np.array(value) for name, value in row.items()}])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0, 0]] * 2
    assert batch["labels"].tolist() == [[-100, 6, -100, -100, -100]] * 2
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1]] * 2


def test_a_cut_or_missing_file_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = prepared(tmp_path, tokenizer, texts(10), max_length=LENGTH)
    for name in ("00000.ids", "00000.mask", "pieces.npy", "rows.npy", "documents.npy"):
        path = folder / "train" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(ValueError, match=rf"{name} does not have the {len(content)} bytes"):
            load_prepared(folder)
        path.write_bytes(content)
    PreparedRows(folder, "train")[0]


# --- packing strategies, over-long documents


@pytest.mark.parametrize("strategy", ["best-fit-split", "wrapped"])
def test_pretraining_loses_no_token(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, strategy: str) -> None:
    folder = prepared(tmp_path, tokenizer, texts(50), max_length=LENGTH, packing_strategy=strategy)
    rows, _, manifest = load_prepared(folder)
    stored = sorted(token for ids, _ in documents_in(folder) for token in ids)
    assert sorted(token for row in rows for token in row["input_ids"].tolist()) == stored
    assert manifest["train"]["tokens"] == len(stored)
    cut = manifest["train"]["counts"]["text cut over rows"]
    assert cut == sum(len(ids) > LENGTH for ids, _ in documents_in(folder)) > 0
    if strategy == "wrapped":
        assert {len(rows[i]["input_ids"]) for i in range(len(rows) - 1)} == {LENGTH}
    for row in rows:
        starts = np.cumsum(row["seq_lengths"]) - row["seq_lengths"]
        assert np.array_equal(np.flatnonzero(row["labels"] == -100), starts)


def test_best_fit_refuses_or_drops_text_longer_than_a_row(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"texts\.jsonl:\d+: \d+ tokens, and max_length is 96; .*best-fit-split"):
        prepared(tmp_path, tokenizer, texts(50), max_length=LENGTH, packing_strategy="best-fit")
    keys = {"packing_strategy": "best-fit", "overlong": "drop", "max_overlong_ratio": 1.0}
    manifest = manifest_of(prepared(tmp_path, tokenizer, texts(50), max_length=LENGTH, **keys))
    dropped = manifest["train"]["counts"]["dropped: longer than 96 tokens"]
    assert 0 < dropped == 50 - manifest["train"]["documents"]
    with pytest.raises(ValueError, match=r"wrapped cuts documents anywhere, and .* holds conversations"):
        prepared(tmp_path, tokenizer, CONVERSATIONS, max_length=LENGTH, packing_strategy="wrapped")


LONG = conversation("One", "Eins", "Two", "Zwei zwei zwei", "Three", "Drei", system="Count")
ENDLESS = conversation("Say it", "x" * 80)
PROMPT = conversation("x" * 80, "yes")


@pytest.mark.parametrize(
    ("overlong", "row", "said", "met"),
    [
        ("drop", LONG, [], "dropped: longer than 32 tokens"),
        ("truncate", LONG, [["Eins<|end|>"]], "truncated: after the last whole answer that fits"),
        ("truncate", ENDLESS, [["x"]], "truncated: an answer lost its stop token"),
        ("truncate", PROMPT, [], "dropped: no answer begins within 32 tokens"),
        ("split-at-a-turn", LONG, [["Eins<|end|>"], ["Zwei zwei zwei<|end|>"], ["Drei<|end|>"]], "split at a turn"),
        ("split-at-a-turn", ENDLESS, [], "dropped: one exchange longer than 32 tokens"),
    ],
)
def test_overlong_conversations(
    tokenizer: PreTrainedTokenizerBase, overlong: Any, row: dict[str, Any], said: list[list[str]], met: str
) -> None:
    tokenise = Tokeniser(tokenizer, 32, overlong)
    [found] = tokenise.documents([Row(row, "a.jsonl:7")])
    assert tokenise.tally.faults == {met: 1} and tokenise.tally.places == {met: ["a.jsonl:7"]}
    assert tokenise.overlong_rows == 1 and max([len(document) for document in found], default=0) <= 32
    spoken = [tokenizer.decode(document.labels[document.labels != -100]) for document in found]
    if said == [["x"]]:
        assert set(spoken[0]) == {"x"} and len(found[0]) == 32
    else:
        assert spoken == ["".join(answers) for answers in said]
    if overlong == "split-at-a-turn":
        for document in found:  # each after the system turn
            assert tokenizer.decode(document.input_ids).startswith("<|begin|><|system|>Count<|end|><|user|>")


@pytest.mark.parametrize("overlong", ["fail", "split"])
def test_an_overlong_conversation_is_refused(tokenizer: PreTrainedTokenizerBase, overlong: Any) -> None:
    with pytest.raises(ValueError, match=r"^a\.jsonl:7: \d+ tokens, and max_length is 32; .*split-at-a-turn"):
        Tokeniser(tokenizer, 32, overlong).documents([Row(LONG, "a.jsonl:7")])


def test_too_many_overlong_rows_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [*chats(18), conversation("Say it", "x" * 150), conversation("Say it", "y" * 150)]
    keys = {"max_length": 128, "overlong": "truncate"}
    with pytest.raises(
        ValueError, match=r"train: 2 of 20 rows \(10\.00%\) are longer .* max_overlong_ratio is 5\.00%"
    ):
        prepared(tmp_path, tokenizer, rows, **keys)
    manifest = manifest_of(prepared(tmp_path, tokenizer, rows, **keys, max_overlong_ratio=0.1))
    assert manifest["train"]["counts"]["truncated: an answer lost its stop token"] == 2
    assert manifest["train"]["documents"] == 20


# --- faults, repeats, held-out text


def test_one_refused_conversation_of_a_batch_is_the_only_one(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [Row(row, f"a.jsonl:{number}") for number, row in enumerate(chats(9), 1)]
    rows[4] = Row({"messages": [*SAID, {"role": "tool", "content": "x"}]}, "a.jsonl:5")
    with pytest.raises(ValueError, match=r"^a\.jsonl:5: the chat template cannot render it \(role tool is none of"):
        Tokeniser(tokenizer, LENGTH).documents(rows)
    tokenise = Tokeniser(tokenizer, LENGTH, faulty="drop")
    assert [len(found) for found in tokenise.documents(rows)] == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert tokenise.tally.places == {"dropped: the chat template cannot render it": ["a.jsonl:5"]}


def test_faulty_rows_follow_their_policy(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    last = {"messages": [*chats(1)[0]["messages"], {"role": "user", "content": "Bye"}]}
    rows = [*chats(5), {"messages": []}, last, conversation("Hi", " ")]
    with pytest.raises(ValueError, match=r"rows\.jsonl:6: no message; .*`faulty: drop`"):
        prepared(tmp_path, tokenizer, rows, max_length=LENGTH)
    for faulty, verb, documents in (("drop", "dropped", 5), ("keep", "kept", 6)):
        train = manifest_of(prepared(tmp_path, tokenizer, rows, max_length=LENGTH, faulty=faulty))["train"]
        assert train["documents"] == documents
        counts = {name: count for name, count in train["counts"].items() if "repeats" not in name}
        assert counts == {
            "rows": 8,
            "dropped: no message": 1,
            "dropped: an empty answer": 1,
            f"{verb}: roles out of order (ends with a user turn)": 1,
        }
        assert train["places"]["dropped: no message"] == [f"{tmp_path / 'rows.jsonl'}:6"]


@pytest.mark.parametrize("key", ["repeats", "near_repeats"])
def test_repeats_follow_their_policy(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(work, "ROWS_PER_SHARD", 4)
    rows = [{"text": " ".join(f"{letter}{number}" for number in range(60))} for letter in "abcdefghijklmn"]
    rows[13] = rows[6] if key == "repeats" else {"text": rows[6]["text"] + " end"}
    kind = "repeats an earlier row" if key == "repeats" else "nearly repeats an earlier row"
    with pytest.raises(ValueError, match=rf"texts\.jsonl:14: {kind}: .*texts\.jsonl:7; .*`{key}: drop`"):
        prepared(tmp_path, tokenizer, rows, max_length=LENGTH, **{key: "fail"})
    for policy, documents in (("drop", 13), ("keep", 14)):
        train = manifest_of(prepared(tmp_path, tokenizer, rows, max_length=LENGTH, **{key: policy}))["train"]
        verb = {"drop": "dropped", "keep": "kept"}[policy]
        assert train["documents"] == documents and train["counts"][f"{verb}: {kind}"] == 1


def test_held_out_text_is_kept_out_of_training(mixed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    leaked = texts(9, seed=1)[2:5]
    write_lines(tmp_path / "leaking.jsonl", [*texts(40), *leaked])
    stated = {"datasets": [{"path": str(tmp_path / "leaking.jsonl")}], "contamination_overlap": 1.0, "num_proc": 1}
    kept = mixed("keep", **stated)["train"]
    assert kept["documents"] == 43 and kept["counts"]["kept: a copy of a held-out row"] == 3
    dropped = mixed("drop", contamination="drop", **stated)["train"]
    assert dropped["documents"] == 40 and dropped["counts"]["dropped: a copy of a held-out row"] == 3
    with pytest.raises(ValueError, match=r"leaking\.jsonl:41: a copy of a held-out row: .*heldout\.jsonl:3"):
        mixed("fail", contamination="fail", **stated)


def test_a_share_of_the_rows_is_held_out_by_their_words(
    mixed: Callable[..., dict[str, Any]], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [*texts(200), *texts(20)]  # twenty of them twice
    entry = {"path": str(write_lines(tmp_path / "all.jsonl", rows)), "weight": 1.0}
    stated = {"datasets": [entry], "eval_datasets": [], "contamination": "off"}
    made = mixed("split", **stated, heldout_ratio=0.25)
    ids = {tuple(tokenizer(row["text"], add_special_tokens=False)["input_ids"]): row["text"] for row in rows}
    sides = [{ids[tuple(i[1:-1])] for i, _ in documents_in(tmp_path / "split", name)} for name in ("train", "eval")]
    assert sides[1] == {row["text"] for row in rows if place_of(row) < 0.25}
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {row["text"] for row in rows}
    assert made["train"]["documents"] + made["eval"]["documents"] == 220
    assert 30 <= len(sides[1]) <= 72  # 50 of 200, within 3.5 standard deviations
    screened = mixed("screened", **{**stated, "contamination": "drop"}, heldout_ratio=0.25)
    assert screened["eval"]["documents"] == made["eval"]["documents"]
    assert screened["train"]["documents"] < made["train"]["documents"]  # the held-out share is looked for, too
    with pytest.raises(ValueError, match=r"eval: no document is left of 0 rows.*; raise heldout_ratio$"):
        mixed("none", **stated, heldout_ratio=1e-9)
    with pytest.raises(ValueError, match="heldout_ratio: eval_datasets names held-out rows already"):
        mixed("both", heldout_ratio=0.1)


# --- mixtures


def test_a_mixture_is_by_share_of_tokens_and_copies_none(tmp_path: Path, tokenizer_folder: Path) -> None:
    shares = {"a": 0.7, "b": 0.2, "c": 0.1}
    counts = {"a": 900, "b": 500, "c": 60}
    entries = [
        {"path": str(write_lines(tmp_path / f"{name}.jsonl", texts(counts[name], seed=i))), "name": name, "weight": w}
        for i, (name, w) in enumerate(shares.items())
    ]
    stated = {"datasets": entries, "tokenizer": tokenizer_folder, "max_length": 256}
    made = recipe(tmp_path, "prepare", **stated, max_repeats=10)
    prepare.main(made)
    rows, _, manifest = load_prepared(made.output_dir)
    read = np.zeros(3)
    for row in rows:
        np.add.at(read, row["sources"], row["seq_lengths"])
    assert read / read.sum() == pytest.approx(list(shares.values()), abs=0.002)
    sources = manifest["train"]["sources"]
    assert [source["tokens_read"] for source in sources] == read.tolist()
    assert sum(source["tokens"] for source in sources) == sum(s["tokens"] for s in manifest["train"]["shards"])
    assert sources[2]["epochs"] > 1.2 and sources[2]["tokens_read"] > sources[2]["tokens"]
    for source in sources:
        assert source["epochs"] == pytest.approx(source["tokens_read"] / source["tokens"], rel=0.01)
    with pytest.raises(ValueError, match="max_repeats"):
        prepare.main(recipe(tmp_path, "prepare", **stated, max_repeats=1))


# --- past one machine


def test_slurm_gets_two_scripts_without_a_pickle(
    mixed: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = mixed("one", num_proc=1)
    stated = {"executor": "slurm", "tasks": 3, "slurm_partition": "cpu", "slurm_time": "02:00:00", "num_proc": 1}
    with pytest.raises(ValueError, match=r"no sbatch on this machine; .*make_shards\.slurm, .* --dependency=afterok:"):
        mixed("out", **stated)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\necho "$@" >> "$0.log"\necho Submitted batch job 42\n')
    scontrol = sbatch.with_name("scontrol")
    scontrol.write_text("#!/bin/sh\necho node1\n")
    for program in (sbatch, scontrol):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(FileNotFoundError):
        mixed("out", **stated)  # submitted, and no manifest yet
    assert [line.split()[0] for line in Path(f"{sbatch}.log").read_text().splitlines()][1] == "--dependency=afterok:42"

    [folder] = (tmp_path / "out" / "tasks").iterdir()
    assert not list(folder.rglob("*.pik"))
    logs = folder / "slurm_logs" / "%A_%a.out"
    command = f"{shlex.quote(sys.executable)} -m fledge prepare {tmp_path / 'prepare.yaml'}"
    both = ["#SBATCH --cpus-per-task=1", "#SBATCH --mem-per-cpu=2G", "#SBATCH --nodes=1", "#SBATCH --partition=cpu"]
    both += ["#SBATCH --job-name=fledge-prepare", "#SBATCH --time=02:00:00"]
    both += [f"#SBATCH --output={logs}", f"#SBATCH --error={logs}"]
    start = ['echo "Starting data processing job fledge-prepare"', "set -xe", "export PYTHONUNBUFFERED=TRUE"]
    make = ["#!/bin/bash", *both, "#SBATCH --array=0-2", "#SBATCH --requeue", *start, f"srun -l -n 1 {command}"]
    index = ["#!/bin/bash", *both, "#SBATCH --requeue", *start, f"{command} --executor=null"]
    for name, expected in (("make_shards", make), ("index", index)):
        script = (folder / f"{name}.slurm").read_text()
        assert [line.strip() for line in script.splitlines() if line.strip()] == expected
        subprocess.run(["bash", "-n", folder / f"{name}.slurm"], check=True)

    monkeypatch.setenv("SLURM_NODELIST", "node1")
    for task in range(3):  # what the jobs do
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        with pytest.raises(FileNotFoundError):
            mixed("out", **stated)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert len(list((tmp_path / "out").glob("*/*.ids"))) == 14
    monkeypatch.setattr(shards.Maker, "_write", lambda *_: pytest.fail("a finished shard is made again"))
    assert mixed("out", num_proc=1) == one


def test_slurm_keys_are_not_shell(mixed: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"slurm_partition: 'cpu\\n\$\(touch x\)' is not what sbatch takes"):
        mixed("out", executor="slurm", tasks=2, slurm_partition="cpu\n$(touch x)", num_proc=1)


def test_a_missing_datatrove_is_named(mixed: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datatrove.executor", None)
    monkeypatch.delitem(sys.modules, "fledge.data.tasks", raising=False)
    with pytest.raises(ValueError, match=r"datatrove is not installed; run: pip install 'fledge-lm\[scale\]'"):
        mixed("out", executor="local", tasks=2, num_proc=1)
