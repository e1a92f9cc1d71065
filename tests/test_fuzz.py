"""Files that no one would write on purpose: readers of recipes, layouts, templates and data say no, and never crash.

The quick tests take the same few hundred mutations each time; `make fuzz` goes on for ten minutes.
"""

import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.data.sources import open_sources
from fledge.data.trial import trial
from fledge.data_arguments import DatasetEntry
from fledge.layouts import read_layout
from fledge.recipe import load_recipe


ROOT = Path(__file__).parents[1]
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""For each reader; 0: a fixed number of files."""
SLOWEST = 10.0
"""Seconds for one file; a reader that takes longer hangs."""
PIECES = [b"\x00", b"\xff\xfe", b"\t", b"\n", b"---\n", b": ", b"- ", b"{", b"]", b"'", b'"', b"&a ", b"*a", b"null"]
PIECES += [b"!!python/x ", b"1e999", b"-0", b"9" * 400, b"\xe2\x80\xae", b"{% for a in b %}", b"{{", b"%}", b"[" * 60]
ANSWER = {"role": "assistant", "content": "ok"}
ROWS = [{"messages": [{"role": "user", "content": f"question {i} \u00e4"}, ANSWER]} for i in range(20)]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = sorted((ROOT / "chat_templates").glob("*.jinja"))


def mutations(originals: list[bytes], seed: str, count: int) -> Iterator[bytes]:
    """Bytes cut out, doubled, swapped, flipped, or put in, one to eight times."""
    chance, until = random.Random(seed), time.monotonic() + SECONDS
    for number in itertools.count():
        if time.monotonic() >= until and number >= count:
            return
        data = bytearray(chance.choice(originals))
        for _ in range(chance.randint(1, 8)):
            start = chance.randrange(len(data) + 1)
            stop = min(len(data), start + chance.choice((1, 2, 8, 64)))
            kind = chance.randrange(5)
            if kind == 0:
                del data[start:stop]
            elif kind == 1:
                data[start:start] = data[start:stop]
            elif kind == 2:
                data[start:start] = chance.choice(PIECES)
            elif kind == 3 and start < len(data):
                data[start] ^= 1 << chance.randrange(8)
            else:
                data[start:stop] = bytes(chance.randrange(256) for _ in range(stop - start))
        yield bytes(data)


def survive(read: Callable[[bytes], object], originals: list[bytes], seed: str, count: int = 300) -> None:
    """Read mutations: whatever is wrong with one is a ValueError, in bounded time."""
    taken = refused = 0
    for data in mutations(originals, seed, count):
        taken += 1
        began = time.monotonic()
        try:
            read(data)
        except ValueError as error:
            assert str(error), data
            refused += 1
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}: seed {seed}, {data!r}") from error
        assert time.monotonic() - began < SLOWEST, data
    print(f"{seed}: {taken} files, {refused} refused")


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "sft", "dpo", "evaluate"])
def test_recipes(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / f"{stage}.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_recipe(stage, path)

    survive(read, [found.read_bytes() for found in sorted(ROOT.glob(f"recipes/*/{stage}.yaml"))], stage)


def test_layouts(tmp_path: Path) -> None:
    path = tmp_path / "layout.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_layout(path)

    survive(read, [found.read_bytes() for found in sorted(ROOT.glob("accelerate_configs/*.yaml"))], "layout")


def test_templates() -> None:
    def read(data: bytes) -> None:
        if fault := trial(data.decode("utf-8", "replace"), [ROWS[0]["messages"]], TOKENS):
            raise ValueError(fault)

    survive(read, [path.read_bytes() for path in TEMPLATES], "template", count=8)


def originals(kind: str, folder: Path) -> bytes:
    path = folder / f"whole.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    elif kind == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text(json.dumps(ROWS, indent=1) if kind == "json" else "first\nsecond line\n" * 20)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "json", "txt"])
def test_data(tmp_path: Path, kind: str) -> None:
    def read(data: bytes) -> None:
        path = tmp_path / f"{hash(data)}.{kind}"  # another each time: an older one may still be mapped
        path.write_bytes(data)
        for source in open_sources([DatasetEntry(path=str(path))]):
            for part in source.split(7):
                for row in part.rows(strict=False):
                    row.values.get("messages")
        path.unlink()

    survive(read, [originals(kind, tmp_path)], kind)
