"""fledge inspect shows what the rows hold, to the token; nothing in the data acts; the page in a real browser."""

import json
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import CONVERSATIONS, TEXTS, TINY, conversation, write_lines
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from fledge.cli import main
from fledge.data.pairs import encode, write_pairs
from fledge.data.prepared import load_prepared
from fledge.data.tokenise import IGNORED
from fledge.inspecting import leak, rows
from fledge.inspecting.checks import check_rows
from fledge.inspecting.find import find
from fledge.inspecting.look import SCRIPT
from fledge.inspecting.summary import bins, dropped
from fledge.inspecting.tokens import Reader, visible
from fledge.recipe import load_recipe
from fledge.stages import prepare


LENGTH = 200
HOSTILE = "<script>document.title='owned'</script></p><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"
SHOWN = [*CONVERSATIONS, conversation(HOSTILE, f"{HOSTILE} 龘"), conversation("Sing", "la\n\nla \tla")]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


MODEL = {key: value for key, value in TINY.items() if key not in ("vocab_size", "initializer_range")}
PAIRS = [
    {
        "prompt": [{"role": "user", "content": ask}],
        "chosen": [{"role": "assistant", "content": good}],
        "rejected": [{"role": "assistant", "content": bad}],
        "form": "",
        "made": "by hand",
        "rejected_score": 0.0,
    }
    for ask, good, bad in (("写一首诗", TEXTS[0], "月"), ("Say yes", "yes", "no, never"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A recipe folder whose prepare and pairs stages have run: text, conversations and pairs."""
    folder = tmp_path_factory.mktemp("nest")
    files = {"text": [{"text": text} for text in TEXTS], "chats": SHOWN, "others": [conversation("Count", "one two")]}
    text, chats, others = ([{"path": str(write_lines(folder / f"{n}.jsonl", rows))}] for n, rows in files.items())
    made = {"tokenizer": str(tokenizer_folder), "max_length": LENGTH, "faulty": "keep"}
    run = folder / "run"
    for name, values in {
        "prepare": {"datasets": text, "output_dir": run / "text", **made},
        "prepare_sft": {"datasets": chats, "eval_datasets": others, "output_dir": run / "chat", **made},
        "pretrain": {"prepared": run / "text", "tokenizer": tokenizer_folder, "model_config": MODEL},
        "sft": {"prepared": run / "chat", "model_name_or_path": run / "pretrain", "max_length": LENGTH},
        "dpo": {"pairs": run / "pairs", "model_name_or_path": run / "sft", "max_length": LENGTH},
    }.items():
        values = {"output_dir": run / name, **values}
        if name in ("pretrain", "sft", "dpo"):
            values["pairs_per_step" if name == "dpo" else "tokens_per_step"] = LENGTH
        values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        if name.startswith("prepare"):
            prepare.main(load_recipe("prepare", path))
    (run / "pairs").mkdir()
    write_pairs(run / "pairs" / "train.parquet", PAIRS)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """The page of the whole folder, with its leak test."""
    path = folder / "page.html"
    assert main(["inspect", str(folder), "--rows", "3", "--leak-test", "--html", str(path)]) == 0
    return path


class Tokens(HTMLParser):
    """The tokens of a page as lists of (classes, attributes), by `.tokens` element; and whatever could act."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[list[tuple[set[str], dict[str, str | None]]]] = []
        self.elements: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "p" and values.get("class") == "tokens":
            self.found.append([])
        if tag == "i" and "data-i" in values:
            self.found[-1].append((set((values.get("class") or "").split()), values))


def shown_rows(folder: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each document of the rows that `--rows 3` shows, of both prepared folders."""
    for name in ("text", "chat"):
        train, _, _ = load_prepared(folder / "run" / name)
        for index in rows.even(len(train), 3):
            item, start = train[index], 0
            for length in item["seq_lengths"]:
                part = slice(start, start + length)
                yield [int(i) for i in item["input_ids"][part]], [int(i) for i in item["labels"][part]]
                start += length


# --- pieces


@pytest.mark.parametrize("text", [*TEXTS, HOSTILE, "龘𝄞 龘", "a  b\n\n c", "é́ ﷽ 👩‍👩‍👧", "\ufffd", "\ufffd\ufffdx"])
def test_pieces_hold_every_token_once_and_the_whole_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Reader.of(tokenizer).pieces([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
    assert [piece.start for piece in pieces] == list(np.cumsum([0, *(piece.count for piece in pieces)])[:-1])
    assert "".join(piece.text for piece in pieces[1:-1]) == text
    assert pieces[-1].is_stop and pieces[-1].is_special and pieces[0].is_special and not pieces[0].is_stop


def test_a_character_of_several_tokens_is_one_piece(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("龘a", add_special_tokens=False)["input_ids"]
    assert [(piece.text, piece.count) for piece in Reader.of(tokenizer).pieces(ids)] == [("龘", 3), ("a", 1)]


def test_bytes_of_no_character_stay_in_small_groups(tokenizer: PreTrainedTokenizerBase) -> None:
    first = tokenizer("龘", add_special_tokens=False)["input_ids"][0]
    pieces = Reader.of(tokenizer).pieces([first] * 10)
    assert sum(piece.count for piece in pieces) == 10 and max(piece.count for piece in pieces) <= 4


# --- the page


def test_the_page_colours_exactly_what_carries_loss(page: Path, folder: Path) -> None:
    shown = Tokens(page.read_text(encoding="utf-8")).found
    expected = list(shown_rows(folder))
    # Documents come first for each folder; the conversation beside its mask repeats one of them.
    by_ids = [[int(values["data-i"] or -1) for _, values in tokens] for tokens in shown]
    for ids, labels in expected:
        tokens = shown[by_ids.index(ids)]
        assert ["l" in classes for classes, _ in tokens] == [label != IGNORED for label in labels]
    assert sum(label != IGNORED for _, labels in expected for label in labels) > 100


def test_pairs_stand_side_by_side_with_loss_on_the_answers(page: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    html = page.read_text(encoding="utf-8")
    assert html.count('class="doc chosen"') == html.count('class="doc rejected"') == len(PAIRS)
    sides = Tokens(html[html.index('class="doc chosen"') :]).found
    for pair in PAIRS:
        prompt, chosen, rejected = encode(tokenizer, pair)
        for answer in (chosen, rejected):
            tokens = sides.pop(0)
            assert [int(values["data-i"] or -1) for _, values in tokens] == prompt + answer
            assert ["l" in classes for classes, _ in tokens] == [False] * len(prompt) + [True] * len(answer)


def test_pairs_are_cut_into_prompt_and_answers_as_trl_does(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    args = DPOConfig(output_dir=str(tmp_path), max_length=LENGTH, use_cpu=True, bf16=False)
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    theirs = DPOTrainer._prepare_dataset(trainer, datasets.Dataset.from_list(PAIRS), tokenizer, args, "train")
    for pair, their in zip(PAIRS, theirs, strict=True):
        assert encode(tokenizer, pair) == (their["prompt_ids"], their["chosen_ids"], their["rejected_ids"])


def test_nothing_in_the_data_acts(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert html.count("<script") == 1 and html.count("<img") == 0 and "&lt;script&gt;" in re.sub("<[^>]*>", "", html)
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert "\x1b" not in html and "\u202e" not in html
    read = Tokens(html)
    assert not read.elements & {"img", "link", "iframe", "object", "embed", "base", "form"}
    assert not read.handlers and all(link.startswith("#set") for link in read.links)
    assert "url(" not in html and "@import" not in html


def test_the_page_holds_the_figures(page: Path, folder: Path) -> None:
    html = page.read_text(encoding="utf-8")
    _, _, manifest = load_prepared(folder / "run" / "chat")
    assert f"of {LENGTH} tokens" in html and f"{manifest['train']['tokens']}" in html.replace(",", "")
    assert "leaks, as it must" in html and html.count("sealed") == 2 * (len(leak.ALLOWED) + 1)
    assert "generation" in html and "<mark>" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(
    page: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, width: int
) -> None:
    # The page forbids every script but its own: the copy that is measured lets one more in.
    probe = """<script>addEventListener("load", () => {
      const loss = document.querySelectorAll(".doc .l"), root = document.documentElement;
      loss[0].scrollIntoView({block: "center"});
      setTimeout(() => {
      loss[0].click();
      const card = document.getElementById("card"), box = card.getBoundingClientRect();
      parent.postMessage(JSON.stringify({loss: loss.length, overflow: root.scrollWidth - root.clientWidth,
        card: card.innerText, inside: box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight,
        title: document.title, coloured: [...loss].filter(t => getComputedStyle(t).backgroundColor !=
          "rgba(0, 0, 0, 0)").length}), "*")}, 500)})</script>"""
    html = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    (tmp_path / "copy.html").write_text(html.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f'<body style="margin:0"><iframe src="copy.html" style="border:0;width:{width}px;height:900px"></iframe>'
        '<pre></pre><script>onmessage = e => document.querySelector("pre").textContent = e.data</script></body>'
    )

    def browse(url: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *flags]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        return subprocess.run([*command, profile, url.as_uri()], capture_output=True, text=True, timeout=300)

    done = browse(tmp_path / "frame.html", "--dump-dom", "--virtual-time-budget=5000", f"--window-size={width},900")
    measured = json.loads(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1])  # type: ignore[index]
    labels = [label for _, labels in shown_rows(folder) for label in labels if label != IGNORED]
    answers = sum(len(chosen) + len(rejected) for _, chosen, rejected in (encode(tokenizer, p) for p in PAIRS))
    assert measured["loss"] == measured["coloured"] == len(labels) + answers
    assert measured["overflow"] == 0 and measured["inside"]
    assert f"token id {labels[0]}" in measured["card"] and "carries loss" in measured["card"]
    assert measured["title"] == folder.name
    picture = tmp_path / "page.png"
    done = browse(page, f"--screenshot={picture}", f"--window-size={max(width, 500)},1200")
    assert "CONSOLE" not in done.stderr and picture.stat().st_size > 20_000


# --- the terminal


def test_the_terminal_marks_what_carries_loss(
    folder: Path, capsys: pytest.CaptureFixture[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    train, _, _ = load_prepared(folder / "run" / "chat")
    assert main(["inspect", str(folder / "sft.yaml"), "--row", "1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and str(folder / "run" / "inspect.html") in out
    assert (folder / "run" / "inspect.html").is_file()
    head, _, below = out.partition("  row 1:")
    assert f"{len(train)} rows of {LENGTH} tokens" in head
    text = "".join(re.findall(r"^  │ +\d+  (.*)$", below.partition("the template beside")[0], re.MULTILINE))
    item = train[0]
    supervised = np.array(item["labels"]) != IGNORED
    marked = "".join(re.findall(r"\[(.*?)\]", text.replace("\\x1b[2J", ""))).replace("■", "")
    learnt = [int(i) for i in np.array(item["input_ids"])[supervised]]
    assert re.sub(r"‹\d›", "", marked) == visible(tokenizer.decode(learnt)).replace("\\x1b[2J", "")
    assert text.count("■") == learnt.count(tokenizer.eos_token_id)


def test_positions_at_the_margin_are_those_of_the_tokens(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["inspect", str(folder / "pretrain.yaml"), "--row", "1"]) == 0
    below = capsys.readouterr().out.partition("  row 1:")[2]
    item = load_prepared(folder / "run" / "text")[0][0]
    first = below.partition("document 1")[2].partition("document 2")[0]
    positions = [int(p) for p in re.findall(r"^  │ +(\d+)  ", first, re.MULTILINE)]
    assert positions[0] == 0 and positions == sorted(set(positions))
    assert len(positions) > 1 and positions[-1] < item["seq_lengths"][0]


def test_colour_only_on_a_terminal_that_wants_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["inspect", str(folder / "sft.yaml"), "--row", "1"]) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[1;31m" in coloured and "■" not in coloured and "\x1b[2J" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["inspect", str(folder / "sft.yaml"), "--row", "1"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# --- checks and the leak test


def test_checks_pass_and_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder / "prepare_sft.yaml"), "--check", "--eval"]) == 0
    out = capsys.readouterr().out
    assert "FAULT" not in out and out.count("ok  ") >= 7 and "inspect.html" not in out


@pytest.mark.parametrize(
    "rule, spoil",
    [
        ("lengths", lambda row: row["seq_lengths"].pop()),
        ("labels", lambda row: row["labels"].__setitem__(2, row["input_ids"][2] + 1)),
        ("first", lambda row: row["labels"].__setitem__(0, row["input_ids"][0])),
        ("known", lambda row: row["input_ids"].__setitem__(1, 10_000)),
        ("padding", lambda row: row["input_ids"].__setitem__(1, 0)),
        ("learnt", lambda row: row.__setitem__("labels", [IGNORED] * len(row["labels"]))),
        ("stop", lambda row: row["input_ids"].__setitem__(-1, 9)),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array])
def test_every_rule_finds_its_breach(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rule: str, spoil: Any, kind: Any
) -> None:
    train, _, manifest = load_prepared(folder / "run" / "text")
    good = {key: [int(i) for i in train[0][key]] for key in ("input_ids", "labels", "seq_lengths")}
    bad = {key: list(values) for key, values in good.items()}
    spoil(bad)
    assert good["input_ids"][1] != tokenizer.pad_token_id == 0
    items = [{key: kind(values) for key, values in row.items()} for row in (good, bad)]
    figures = rows.count(items, Reader.of(tokenizer), manifest, "train")
    assert rule in figures.breaches and figures.places[rule] == 2
    (subject,), _ = find(folder / "prepare.yaml")
    states = [check.state for check in check_rows(subject, tokenizer, manifest, figures) if "row 2" in check.message]
    assert states and set(states) <= {"fault", "note"}


def test_a_failed_check_exits_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_breaches", lambda *_: {"first": 1})
    assert main(["inspect", str(folder / "prepare.yaml"), "--check"]) == 2
    found = capsys.readouterr()
    assert "FAULT the first token of a document carries no loss" in found.out and "first in row 1" in found.err


def test_a_leak_is_refused_and_a_blind_test_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["inspect", str(folder / "sft.yaml"), "--check", "--leak-test"]
    assert main(ask) == 0
    out = capsys.readouterr().out
    for backend in leak.ALLOWED:
        neighbours, itself = map(float, re.search(rf"^  {backend} +([\d.e-]+) +([\d.e-]+)", out, re.M).groups())  # type: ignore[union-attr]
        assert neighbours == 0 and itself > 0.01
    with monkeypatch.context() as patch:
        patch.setattr(leak, "CONTROLS", {"nothing at all": lambda batch: batch})
        assert main(ask) == 2
        assert "blind" in capsys.readouterr().err
    monkeypatch.setattr(leak, "PackedCollator", Unrestarted)
    assert main(ask) == 2
    assert "packed documents see each other under sdpa" in capsys.readouterr().err


class Unrestarted(leak.PackedCollator):
    """A collator that forgets where documents begin."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        batch["position_ids"][:] = torch.arange(self.max_length)
        return batch


# --- what is looked into, and what is not there


def test_a_folder_gives_every_prepared_folder_and_the_pairs(folder: Path) -> None:
    there, missing = find(folder)
    assert [(subject.name, subject.folder.name) for subject in there] == [
        ("prepare", "text"),
        ("prepare_sft", "chat"),
        ("dpo", "pairs"),
    ]
    assert not missing
    for name, prepared in {"prepare_sft": "chat", "pretrain": "text", "sft": "chat", "dpo": "pairs"}.items():
        (subject,), _ = find(folder / f"{name}.yaml")
        assert subject.folder.name == prepared
    (subject,), _ = find(folder / "run" / "chat")
    assert subject.tokenizer == find(folder / "sft.yaml")[0][0].tokenizer


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["prepare.yaml", "--row", "99"], "--row 99: train has rows 1 to"),
        (["prepare.yaml", "--eval"], "has no held-out part; name eval_datasets"),
        (["", "--row", "1"], "name the recipe of one of them"),
        (["tokenizer.yaml"], "inspect looks at prepare, pretrain, sft, dpo recipes"),
        (["empty"], "no prepare or dpo recipe"),
        (["prepare.yaml", "--rows", "0"], "at least 1"),
        (["prepare.yaml", "--html", "no/such/folder.html"], "cannot be written"),
    ],
)
def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    assert main(["inspect", str(folder / arguments[0]), *arguments[1:]]) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_made_yet_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("prepare", "prepare_sft"):
        shutil.copy(folder / f"{name}.yaml", tmp_path)
    stated = yaml.safe_load((tmp_path / "prepare_sft.yaml").read_text())
    (tmp_path / "prepare_sft.yaml").write_text(yaml.safe_dump(stated | {"output_dir": str(tmp_path / "later")}))
    assert main(["inspect", str(tmp_path), "--check"]) == 0
    out = capsys.readouterr().out
    assert f"not shown: prepare_sft: nothing made yet in {tmp_path / 'later'}" in out
    assert "no recipe here says which model" in out


def test_manifests_that_say_little(tokenizer: PreTrainedTokenizerBase) -> None:
    item = {"input_ids": [1, 9, 2], "labels": [IGNORED, 9, 2], "seq_lengths": [3]}
    manifest = {"max_length": 8, "train": {}}
    figures = rows.count([item], Reader.of(tokenizer), manifest, "train")
    assert figures.by_source() == {"not recorded": (1, 3, 2)} and dropped(manifest, "train") == "not recorded"
    counted = {"train": {"counts": {"rows": 9, "dropped: empty text": 2}, "sources": [{"name": "a"}, {"name": "b"}]}}
    assert dropped(counted, "train") == "dropped: empty text 2, of 9 rows read"
    two = {"input_ids": [1, 9, 2] * 2, "labels": [IGNORED, 9, 2] * 2, "seq_lengths": [3, 3], "sources": [1, 0]}
    row = rows.row_at([two], 1, Reader.of(tokenizer), {"max_length": 8, **counted}, "train")
    assert [document.source for document in row.documents] == ["b", "a"]


def test_histograms_count_every_value_once() -> None:
    values = [1, 1, 7, 19, 20, 96, 1023]
    for most in (1, 4, 12, 24):
        counted = bins(values, most)
        assert len(counted) <= most and sum(count for *_, count in counted) == len(values)
        assert all(high + 1 == low for (_, high, _), (low, _, _) in pairwise(counted))
