"""The data card of the Tang corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.corpora.tang_chat import KINDS
from fledge.corpora.tang_forms import FORMS
from fledge.corpora.tang_poems import Poem


_SPLITS = ("train", "heldout")

_HEADER = """---
pretty_name: Regular Tang verse
license: mit
language:
- zh
task_categories:
- text-generation
size_categories:
- 10K<n<100K
source_datasets:
- original
tags:
- poetry
- classical-chinese
configs:
- config_name: poems
  default: true
  data_files:
  - split: train
    path: poems/train.parquet
  - split: heldout
    path: poems/heldout.parquet
  - split: tang300
    path: poems/tang300.parquet
- config_name: chat
  data_files:
  - split: train
    path: chat/train.parquet
  - split: heldout
    path: chat/heldout.parquet
- config_name: requests
  data_files:
  - split: train
    path: requests/train.parquet
  - split: heldout
    path: requests/heldout.parquet
---
"""

_BODY = """
# Regular Tang verse

Real poems of the Tang dynasty in four regular forms, in simplified characters, as pretraining documents, as
conversations and as requests. Whether an answer keeps to the form asked for can be checked by code.

| form | characters a line | lines |
|---|---|---|
{shapes}

A body has one couplet a text line, "A，B。", and nothing else.
{cut_short}
## Source and licence

npm package `{package}` {version}, files `dist/quantangshi/poet.tang.*.json` and
`dist/mengxue/tangshisanbaishou.json`; SHA-256 of its tarball:
`{sha256}`.

The package is under the MIT licence, which lies here as `LICENSE`; the poems
themselves are in the public domain. Traditional characters were turned into simplified ones with OpenCC (t2s).
Nothing here was written by a language model.

## Files and rows

| file | rows |
|---|---|
{files}

Poems by form:

| split | {forms} | without usable title |
|---|---|{form_rule}---|
{form_rows}

Conversations by kind:

| split | {kinds} |
|---|{kind_rule}
{kind_rows}

Of the {n_requests} held-out requests, {n_references} have a real poem as the reference.

## Columns

- `poems`: `id` (16 hex digits of the body's SHA-256), `form`, `title` ("" if the source has none usable), `author`,
  `text` (the pretraining document: form, title and author on the first text line, then the body), `body`.
- `chat`: `messages` (list of role and content; user first), `kind`, `form`, `title`. One conversation a poem:
  "ask" (a poem by form and title), "continue" (the whole poem from its first line), "author" (ask, then who wrote
  it), "reform" (ask, then a real poem of another form with the same title). A poem without a usable title is always
  a "continue".
- `requests`: `prompt` (one user turn), `form`, `title`, `reference` (the body of a real poem of that form and title,
  or "" if there is none).

## What was dropped

{read} poems were read, {kept} kept ({train} train, {heldout} held out):

| reason | poems |
|---|---|
{dropped}

Of the {tang300_read} poems of the Tang 300, {tang300_kept} were kept:

| reason | poems |
|---|---|
{tang300_dropped}

Titles lose notes in brackets, the music bureau's class ("横吹曲辞"), the size of a series ("十首") and the number
within it. A title that still holds other characters than ideographs, or has more than 20, is left out, and its poem
kept. Every mark that ends a line became "，" or "。" by position ("？" and "！" are not kept).

## Splits

- `tang300`: the regular poems of the anthology 唐诗三百首, with variant readings in brackets taken off.
- A poem that shares a line with any poem of that anthology, regular or not, is in no other split.
- `heldout`: the poems whose id is in the lowest 3% of the range, less those that share a line with `train`.
- So no line of `heldout` or `tang300` is in `train`, compared in simplified characters without punctuation.
- `requests/heldout` asks only for titles that a held-out poem has and no train poem has.
- Rows are in the order of the id, a hash: mixed, and the same in every build.

## Examples

A document:

```
{document}
```

{examples}
## Limitations

- Forms are told by shape alone: line length and number of lines. Tones, rhyme and parallelism are not checked, so
  old-style verse of the same shape is counted as regular.
- Simplifying can pick a wrong character where one simplified form stands for several, and the source has
  typing errors.
- A poem that differs from a held-out one by a character in every line is not found as shared.
- Authors are as the source has them, "不详" (unknown) among them. Nothing but memory can answer an "author" turn.
- The language is literary Chinese of the 7th to 10th centuries, with the views of its time.
"""


def write_card(path: Path, counts: dict[str, Any], chats: Sequence[dict[str, Any]], train: Sequence[Poem]) -> None:
    """Write README.md: a dataset card with a YAML header. The examples are the first train rows of their kind."""
    poems, tang300 = counts["poems"], counts["tang300"]
    rows = {
        "poems/train": poems["kept"]["train"],
        "poems/heldout": poems["kept"]["heldout"],
        "poems/tang300": tang300["kept"],
        **{f"{part}/{split}": sum(counts[part][split].values()) for part in ("chat", "requests") for split in _SPLITS},
    }
    form_rows = [
        (split, *(found.get(form, 0) for form in FORMS), counts["without_usable_title"][split])
        for split, found in counts["forms"].items()
    ]
    most = counts["max_documents"]
    body = _BODY.format(
        cut_short=f"\nCut short: at most {most} documents of each source and split.\n" if most else "",
        **counts["source"],
        shapes=_table((form, *shape) for form, shape in FORMS.items()),
        files=_table((f"`{name}.parquet`", number) for name, number in rows.items()),
        forms=" | ".join(FORMS),
        form_rule="---|" * len(FORMS),
        form_rows=_table(form_rows),
        kinds=" | ".join(KINDS),
        kind_rule="---|" * len(KINDS),
        kind_rows=_table((split, *(counts["chat"][split].get(kind, 0) for kind in KINDS)) for split in _SPLITS),
        n_requests=rows["requests/heldout"],
        n_references=counts["heldout_requests_with_reference"],
        read=poems["read"],
        kept=sum(poems["kept"].values()),
        train=poems["kept"]["train"],
        heldout=poems["kept"]["heldout"],
        dropped=_table(poems["dropped"].items()),
        tang300_read=tang300["read"],
        tang300_kept=tang300["kept"],
        tang300_dropped=_table(tang300["dropped"].items()),
        document=train[0].text,
        examples="".join(_example(kind, chats) for kind in KINDS),
    )
    path.write_text(_HEADER + body, encoding="utf-8")


def _table(rows: Any) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _example(kind: str, chats: Sequence[dict[str, Any]]) -> str:
    messages = next((row["messages"] for row in chats if row["kind"] == kind), None)
    if messages is None:
        return ""
    turns = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return f'A conversation of the kind "{kind}":\n\n```\n{turns}\n```\n\n'
