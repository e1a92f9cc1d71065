"""Sources: every kind of file gives the same rows however it is cut, and every fault is named with its place."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fledge.arguments import DatasetEntry
from fledge.data.sources import Row, Source, open_sources, read_rows


ROWS = [
    {"text": f"Document {index}: 床前明月光。", "meta": {"set": "AB"[index % 2], "n": index}} for index in range(2500)
]


def lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 400) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


def arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


def arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def json_list(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def text_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes("".join(row["text"] + "\r\n" for row in rows).encode())


def marked(path: Path, rows: list[dict[str, Any]]) -> None:
    lines(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def one_group(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet(path, rows, row_group_size=10_000)


KINDS: list[tuple[str, Callable[[Path, list[dict[str, Any]]], None]]] = [
    ("a.parquet", parquet),
    ("a.parquet", one_group),
    ("a.arrow", arrow_file),
    ("a.arrow", arrow_stream),
    ("a.jsonl", lines),
    ("a.jsonl", marked),
    ("a.json", lines),
    ("a.json", json_list),
    ("a.txt", text_lines),
]


def source(path: Path | str, **keys: Any) -> Source:
    [opened] = open_sources([DatasetEntry(path=str(path), **keys)])
    return opened


def rows_of(path: Path | str, **keys: Any) -> list[dict[str, Any]]:
    return [row.values for row in read_rows([DatasetEntry(path=str(path), **keys)])]


# --- parts


@pytest.mark.parametrize(("name", "write"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_parts_hold_every_row_once_in_order_however_they_are_cut(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    path = tmp_path / name
    write(path, ROWS)
    opened = source(path)
    assert opened.format == "text" and opened.name == str(path)
    expected = [Row({"text": row["text"]} if name == "a.txt" else row, f"{path}:{n}") for n, row in enumerate(ROWS, 1)]
    for rows_per_part in (1000, 333, 10_000):
        parts = pickle.loads(pickle.dumps(opened.split(rows_per_part)))
        assert parts == opened.split(rows_per_part)
        assert [row for part in parts for row in part.rows()] == expected
        assert list(parts[-1].rows()) == expected[parts[-1].span.start :]  # each on its own
        if write is not json_list:
            assert len(parts) >= len(ROWS) / max(rows_per_part, 400)
            assert max(part.span.stop - part.span.start for part in parts) <= max(rows_per_part, 400)
        assert len(pickle.dumps(parts[0])) < 1000


def test_blank_lines_of_json_hold_no_row_but_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n  \n{"text": "b"}')
    assert [(row.values["text"], row.place) for row in source(path).split(1)[0].rows()] == [("a", f"{path}:1")]
    assert [row.place for part in source(path).split(2) for row in part.rows()] == [f"{path}:1", f"{path}:4"]


def test_a_large_row_group_is_read_piece_by_piece(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"text": rng.randbytes(2000).hex()} for _ in range(5000)]  # 20 MB that do not compress away
    one_group(tmp_path / "a.parquet", rows)
    part, *_ = source(tmp_path / "a.parquet").split(100_000)
    before = pyarrow.total_allocated_bytes()
    reading = part.rows()
    assert next(reading).values == rows[0]
    assert pyarrow.total_allocated_bytes() - before < (tmp_path / "a.parquet").stat().st_size
    assert sum(1 for _ in reading) == 4999


# --- what cannot be read


PARQUET_MESSAGE = r"a\.parquet: not a whole parquet file .*; make it again"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": "\xff"}\n', r"a\.jsonl:2: bytes that are no UTF-8: 0xff at byte 11;"),
        ("a.jsonl", b'{"text": "good"}\n{"text": \n', r"a\.jsonl:2: a broken line of JSON: Expecting value"),
        ("a.jsonl", b'{"text": "good"}\n' + b"[" * 200_000, r"a\.jsonl:2: a broken line of JSON: maximum recursion"),
        ("a.jsonl", b'{"text": "good"}\n["text"]\n', r"a\.jsonl:2: no JSON object: a list stands in its place"),
        ("a.jsonl", b'"text"\n', r"a\.jsonl:1: no JSON object: a str stands in its place"),
        ("a.jsonl", b"\n\n", r"a\.jsonl holds no row"),
        ("a.jsonl", b"", r"a\.jsonl is empty and holds no row"),
        ("a.jsonl", b"{}\n{}\n", r"a\.jsonl has rows without a column"),
        ("a.txt", b"good\n\xe4\xb8", r"a\.txt:2: bytes that are no UTF-8: 0xe4 at byte 1"),
        ("a.json", b'[{"text": "good"},\n{"text" "b"}]', r"a\.json:2: a broken list of JSON: Expecting ':'"),
        ("a.json", b'[{"text": "good"},\n{"text": "\xff"}]', r"a\.json:2: bytes that are no UTF-8: 0xff"),
        ("a.json", b'[{"text": "good"}, "bad"]', r"a\.json:2: no JSON object: a str"),
        ("a.json", b"[]", r"a\.json holds no row"),
        ("a.json", b'{\n "text": "printed over lines"\n}', r"a\.json:1: a broken line of JSON"),
        ("a.parquet", b"PAR1 and no more", PARQUET_MESSAGE),
        ("a.parquet", b"", r"a\.parquet is empty and holds no row"),
        ("a.arrow", b"ARROW1 and no more", r"a\.arrow: not a whole arrow file"),
        ("a.arrow", b"nothing of the kind", r"a\.arrow: not a whole arrow file"),
        ("a.csv", b"text\n", r"a\.csv: \.csv is not read, only \.parquet, \.arrow, \.jsonl, \.json, \.txt are"),
        ("a.jsonl", None, r"^datasets\[0\]: .*no such file: .*a\.jsonl; run the stage that makes it"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize(("name", "write"), KINDS[:4], ids=lambda value: getattr(value, "__name__", value))
def test_a_truncated_file_is_named(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None], kept: float
) -> None:
    path = tmp_path / name
    write(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"^{path}: not a whole {path.suffix[1:]} file .*; make it again"):
        rows_of(path)


def test_a_row_that_cannot_be_read_is_handed_on_where_it_is_to_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text"\n[]\n{"text": "b"}\n')
    [part] = source(path).split()
    assert [(row.values.get("text"), row.fault) for row in part.rows(strict=False)] == [
        ("a", None),
        (None, "bytes that are no UTF-8"),
        (None, "a broken line of JSON"),
        (None, "no JSON object"),
        ("b", None),
    ]


def test_text_in_a_parquet_file_that_is_no_utf8_has_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": pyarrow.array([b"good", b"b\xffd", b"fine"])})
    pyarrow.parquet.write_table(table.set_column(0, "text", table["text"].chunk(0).view(pyarrow.string())), path)
    with pytest.raises(ValueError, match=rf"^{path}:2: bytes that are no UTF-8: 0xff at byte 2; correct the line"):
        rows_of(path)
    [part] = source(path).split()
    assert [row.fault for row in part.rows(strict=False)] == [None, "bytes that are no UTF-8", None]


# --- columns and filters


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.arrow"])
@pytest.mark.parametrize("nested", ["struct", "json"])
def test_columns_are_renamed_and_chosen_and_rows_filtered(tmp_path: Path, name: str, nested: str) -> None:
    rows = [
        {"content": f"{n}", "id": n, "meta": {"set": "AB"[n % 2], "inner": {"n": n % 3}}, "language": "en"}
        for n in range(30)
    ]
    if nested == "json":
        rows = [{**row, "meta": json.dumps(row["meta"])} for row in rows]
    dict(KINDS)[name](tmp_path / name, rows)
    columns = {"text": "content"}
    assert rows_of(tmp_path / name, columns=columns) == [{"text": f"{n}"} for n in range(30)]
    kept = source(tmp_path / name, columns=columns, filter={"meta.set": "A", "meta.inner.n": [0, 2]})
    found = [row for part in kept.split(7) for row in part.rows()]
    expected = [n for n in range(0, 30, 2) if n % 3 != 1]
    assert [row.values for row in found] == [{"text": f"{n}"} for n in expected]
    assert [row.place for row in found] == [f"{tmp_path / name}:{n + 1}" for n in expected]
    assert rows_of(tmp_path / name, columns={"text": "content", "set": "meta.set"})[1] == {"text": "1", "set": "B"}


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"columns": {"text": "txt"}}, r"no column txt; did you mean text\?; its columns are text, meta"),
        ({"filter": {"meta.sett": "A"}}, r"no column meta\.sett.*; its columns are text, meta"),
        (
            {"filter": {"meta.set": "C"}},
            r'filter: meta\.set: no row has "C"; the values are "A" \(1250 rows\), "B" \(',
        ),
        ({"filter": {"meta.set": ["A", "a"]}}, r'filter: meta\.set: no row has "a"'),
        (
            {"filter": {"meta.n": -1}},
            r"filter: meta\.n: no row has -1; the values are 0 \(1 rows\), .* and 2490 others",
        ),
        ({"columns": {"body": "text"}}, r"nothing is known to read of the columns body; .*`columns`.*Understood are"),
        ({"split": "train"}, r"split: only folders and hub ids have splits"),
        ({"subset": "small"}, r"subset: only hub ids have subsets"),
    ],
)
def test_a_column_or_value_that_is_not_there_is_named(
    tmp_path: Path, name: str, keys: dict[str, Any], message: str
) -> None:
    dict(KINDS)[name](tmp_path / name, ROWS)
    with pytest.raises(ValueError, match=rf"^datasets\[0\]: {tmp_path / name}: {message}"):
        source(tmp_path / name, **keys)


def test_a_file_of_a_source_that_lacks_the_column_is_named(tmp_path: Path) -> None:
    for kind, write in (("parquet", parquet), ("arrow", arrow_stream)):
        write(tmp_path / f"a.{kind}", [{"content": "a", "id": 1}])
        write(tmp_path / f"b.{kind}", [{"body": "b", "id": 2}])
        with pytest.raises(ValueError, match=rf"b\.{kind}: no column content, which other files of the source have"):
            rows_of(tmp_path / f"*.{kind}", columns={"text": "content"})


# --- finding files


def test_a_glob_is_sorted_and_may_not_match_nothing(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        lines(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert [values["text"] for values in rows_of(tmp_path / "*.jsonl")] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=rf"matches no file; {tmp_path} holds a\.jsonl, b\.jsonl, c\.jsonl$"):
        source(tmp_path / "*.parquet")
    parquet(tmp_path / "d.parquet", [{"text": "d"}])
    with pytest.raises(ValueError, match=r"files of several kinds, \.jsonl, \.parquet; name one, as in \*\.jsonl"):
        source(tmp_path / "*")


def test_a_folder_gives_the_split_and_never_mixes_in_what_was_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet(folder / f"{name}.parquet", [{"text": name}])
    (folder / "card.json").write_text("{}")
    expected = ["train-00000-of-00002", "train-00001-of-00002"]
    assert [values["text"] for values in rows_of(folder, split="train")] == expected
    with pytest.raises(ValueError, match=r"split: name one of test, train$"):
        source(folder)
    with pytest.raises(ValueError, match=r"split: there is no tests; did you mean test\?; there are test, train"):
        source(folder, split="tests")
    with pytest.raises(ValueError, match=rf"the folder holds no .* file; there are some in {folder}$"):
        source(tmp_path)


def test_a_folder_of_save_to_disk_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = [{"text": str(n)} for n in range(10)]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    assert rows_of(tmp_path / "one") == rows
    datasets.DatasetDict({"train": saved.select(range(7)), "test": saved.select(range(7, 10))}).save_to_disk(
        tmp_path / "both"
    )
    assert rows_of(tmp_path / "both", split="test") == rows[7:]
    with pytest.raises(ValueError, match=r"split: name one of train, test"):
        source(tmp_path / "both")
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(ValueError, match=r"no such file: .*data-00001-of-00003\.arrow"):
        source(tmp_path / "one")


def test_a_hub_id_is_loaded_by_datasets_and_read_as_its_arrow_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "a.parquet", ROWS)
    load, asked = datasets.load_dataset, []

    def hub(*args: Any, **keys: Any) -> datasets.Dataset:
        asked.append((args, keys))
        return load(
            "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
        )

    monkeypatch.setattr(datasets, "load_dataset", hub)
    opened = source("owner/set", subset="small", filter={"meta.set": "B"})
    assert [row.values for part in opened.split(100) for row in part.rows()] == ROWS[1::2]
    assert opened.name == "owner/set" and all(file.endswith(".arrow") for file in opened.files)
    assert asked == [(("owner/set", "small"), {"split": "train"})]
    with pytest.raises(ValueError, match=r"split: name the whole split, train, and choose by `filter`"):
        source("owner/set", split="train[:10%]")


def test_a_hub_that_cannot_be_reached_is_one_message_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **keys: Any) -> None:
        raise ConnectionError("Couldn't reach\n the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ValueError,
        match=r"^datasets\[0\]: owner/set: there is no such file or folder, and as a hub id it cannot be loaded: "
        r"ConnectionError: Couldn't reach the hub; .* give `path` the folder\. Without a network, `fledge corpus`",
    ):
        source("owner/set")


# --- several entries


def test_entries_of_one_name_are_refused_and_read_in_order_otherwise(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ROWS[:4])
    twice = [{"path": str(tmp_path / "a.parquet"), "filter": {"meta.set": value}} for value in "BA"]
    with pytest.raises(ValueError, match=r"^eval_datasets: 2 entries are called .*; give each a `name` of its own"):
        open_sources([DatasetEntry(**keys) for keys in twice], "eval_datasets")
    named = [DatasetEntry(**keys, name=name) for keys, name in zip(twice, "ba", strict=True)]
    assert [row.values for row in read_rows(named)] == [ROWS[1], ROWS[3], ROWS[0], ROWS[2]]
    with pytest.raises(ValueError, match=r"datasets: b: every row is read here, so leave `weight` out"):
        list(read_rows([DatasetEntry(**twice[0], name="b", weight=0.5)]))
