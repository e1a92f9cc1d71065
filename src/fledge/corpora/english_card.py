"""The data card of the English corpus."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


_HEADER = """---
pretty_name: Pocket English
license: cc-by-sa-4.0
language:
- en
task_categories:
- text-generation
size_categories:
- 10K<n<100K
source_datasets:
- original
configs:
"""

_BODY = """
# Pocket English

Real English text out of registry packages: documents of five sources for pretraining, human small talk and
question-answer conversations for fine-tuning, preference pairs, multiple choices and requests for evaluation. Nothing
here was written by a language model.
{cut_short}
## Sources, licences, attribution

| package | what | licence | by | SHA-256 |
|---|---|---|---|---|
{sources}

The articles and the recipes, and every conversation, pair and choice made from them, are under CC BY-SA 4.0: name the
contributors, and share what you make of the text alike. Changes made to them are listed under "What was dropped" and
"How the rows were made".

## Documents

| source | train | held out | characters, train | share |
|---|---|---|---|---|
{documents}

The share is of characters. `weight` in a recipe is a share of tokens, which prepare counts with its tokenizer.

## Conversations

| file | train | held out | characters, train | kinds, train |
|---|---|---|---|---|
{chats}

## Pairs, choices, requests

| file | rows | of them |
|---|---|---|
{others}

## Columns

- `documents/SOURCE`: `text`, `source`, `title`.
- `chat/NAME`: `messages` (role and content; user first), `kind`, `title`.
- `pairs`: `prompt`, `chosen`, `rejected` (messages), `form`, `made`, `title`.
- `choices`: `prompt` (messages), `choices` (4 texts), `answer` (index of the right one), `form`, `title`, `document`.
- `requests`: `prompt`, `form`, `title`, `reference` (the real answer), `document`. In both, `document` is how the same
  question begins as plain text, for a model that knows no chat.

## How the rows were made

- Articles: "define" asks what a thing is, answers with the lead's first sentence, and goes on to more of the lead;
  "brief" asks for a few words and answers with the article's short description; "read" quotes the lead before it asks.
- Recipes: the ingredients first, the steps when asked for them.
- Small talk: real conversations of two people; the one who begins is the user.
- Pairs: chosen is the article's own description, rejected that of another article of the same topic; or chosen are a
  recipe's own steps, rejected those of another recipe of the same dish or category.
- Choices: the article's own description among three of other articles of the same topic: chance is 1 in 4.
- Requests: definitions, recipes, and the openings of small talk.

## What was dropped

| source | reason | rows |
|---|---|---|
{dropped}

Spaces of all kinds became plain ones; emphasis marks of the plays went, and their stage directions stand in square
brackets; the broken lines of the novel were joined. A wrong description of the same topic can fit by chance.

## Splits

What is held out is decided by a hash of the title (of a recipe without its number, so that "Apple Pie II" goes with
"Apple Pie I"), by source: a held-out article or recipe is in no training document, conversation or pair, not even as
the rejected side. Exact duplicates of recipes were dropped. An article may mention what another one is about, and a
person may speak in a held-out conversation and in others.

## Limitations

- Wikipedia's leads and descriptions are as they were when the package was made; errors in them stay.
- The addresses are political speech; the plays and the novel have the language and the views of their time.
- The people of the small talk were filtered for strong words, web and mail addresses and phone numbers, not for truth.

## Examples

{examples}"""


def write_card(
    path: Path,
    counts: dict[str, Any],
    document: str,
    chats: Sequence[dict[str, Any]],
    others: dict[str, tuple[list[dict[str, Any]], Any]],
) -> None:
    """Write README.md: a dataset card with a YAML header."""
    whole = sum(parts["train"]["characters"] for parts in counts["documents"].values())
    document_rows = (
        (
            f"`documents/{name}`",
            parts["train"]["rows"],
            parts["heldout"]["rows"],
            parts["train"]["characters"],
            f"{parts['train']['characters'] / whole:.1%}",
        )
        for name, parts in counts["documents"].items()
    )
    chat_rows = (
        (
            f"`chat/{name}`",
            parts["train"]["rows"],
            parts["heldout"]["rows"],
            parts["train"]["characters"],
            _counted(parts["train"]["kinds"]),
        )
        for name, parts in counts["chat"].items()
    )
    pair = others["pairs/train"][0][0]
    choice = others["choices/heldout"][0][0]
    marked = (f"{'*' if place == choice['answer'] else ' '} {text}" for place, text in enumerate(choice["choices"]))
    examples = {
        "A document": document,
        **{f'A conversation of the kind "{row["kind"]}"': _dialogue(row["messages"][:4]) for row in chats},
        "A pair": "\n".join(
            [_dialogue(pair["prompt"]), *(f"{side}: {pair[side][0]['content']}" for side in ("chosen", "rejected"))]
        ),
        "A choice": "\n".join([_dialogue(choice["prompt"]), *marked]),
    }
    most = counts["max_documents"]
    body = _BODY.format(
        cut_short=f"\nCut short: at most {most} documents of each source and split.\n" if most else "",
        sources=_table(
            (f"{s['registry']} `{s['name']}` {s['version']}", s["what"], s["licence"], s["attribution"], s["sha256"])
            for s in counts["sources"].values()
        ),
        documents=_table(document_rows),
        chats=_table(chat_rows),
        others=_table((f"`{name}`", sum(forms.values()), _counted(forms)) for name, forms in counts["rows"].items()),
        dropped=_table((name, *item) for name, reasons in counts["dropped"].items() for item in reasons.items()),
        examples="\n".join(f"{title}:\n\n```\n{text}\n```\n" for title, text in examples.items()),
    )
    path.write_text(_HEADER + _configs(counts) + "---\n" + body, encoding="utf-8")


def _configs(counts: dict[str, Any]) -> str:
    """The parts a loader can choose from."""
    folders = [f"documents/{name}" for name in counts["documents"]] + [f"chat/{name}" for name in counts["chat"]]
    files = {folder: ["train", "heldout"] for folder in folders}
    for name in counts["rows"]:
        folder, _, split = name.partition("/")
        files.setdefault(folder, []).append(split)
    return "".join(
        f"- config_name: {folder.rpartition('/')[2] if folder.startswith('documents') else folder.replace('/', '_')}\n"
        "  data_files:\n" + "".join(f"  - split: {split}\n    path: {folder}/{split}.parquet\n" for split in splits)
        for folder, splits in files.items()
    )


def _dialogue(messages: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in kinds.items())


def _table(rows: Iterable[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
