"""How fast, and in how much memory, text becomes rows: fledge prepare beside three usual ways.

make bench-prepare                                     # every way, three times, interleaved; prints the table
python benchmarks/prepare.py --memory 250 500 1000     # MB of text: the memory of fledge prepare, and its slope

The ways, all with the same text, tokenizer, row length and processes:

fledge    stages/prepare.py: shards, best-fit-split packing, hashes, manifest; repeats looked for, as by default
fledge*   the same without looking for repeats, which no other way does
nanogpt   data/openwebtext/prepare.py of nanoGPT, from its description: datasets.map tokenises one document after
          another, the ids are written one batch of 1/1024 of the documents after another into a memory map of uint16
grouped   datasets.map tokenises in batches, datasets.map joins and cuts each batch, as transformers' run_clm.py does
packed    datasets.map tokenises in batches, trl.pack_dataset packs (bfd-split: no token is lost)

Each runs in a process of its own; its imports are not timed, the starting of further processes is.
The text is English from Python's own help pages, its paragraphs drawn at random into documents.
"""

import argparse
import json
import os
import pydoc_data.topics
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from common import outputs, show, write


ROW = 1024
VOCABULARY = 16_000


def make_text(path: Path, megabytes: float) -> None:
    """JSON lines of about `megabytes` of text, documents of about 2 kB, log-normal."""
    chance = random.Random(0)
    topics = pydoc_data.topics.topics.values()
    paragraphs = [part.strip() for text in topics for part in text.split("\n\n") if len(part) > 40]
    left = megabytes * 1e6
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            wanted, parts = chance.lognormvariate(7.0, 1.0), []
            while wanted > 0:
                parts.append(chance.choice(paragraphs))
                wanted -= len(parts[-1])
            text = "\n\n".join(parts)
            left -= len(text)
            file.write(json.dumps({"text": text}) + "\n")


def make_tokenizer(folder: Path, text: Path, vocabulary: int = VOCABULARY) -> None:
    """The tokenizer that fledge's own stage trains on it."""
    (folder / "tokenizer.yaml").write_text(
        f"datasets: [{{path: {text}}}]\nvocab_size: {vocabulary}\nchat_template: {folder}/template.jinja\n"
        f"output_dir: {folder}/tokenizer\nspecial_tokens: ['<|system|>', '<|user|>', '<|assistant|>']\n"
    )
    shutil.copy(Path(__file__).parents[1] / "chat_templates" / "fledge.jinja", folder / "template.jinja")
    subprocess.run([sys.executable, "-m", "fledge", "tokenizer", folder / "tokenizer.yaml"], check=True)


def fledge(folder: Path, text: Path, num_proc: int, repeats: str = "keep") -> Callable[[], None]:
    from fledge.recipe import load_recipe
    from fledge.stages import prepare

    (folder / "prepare.yaml").write_text(
        f"datasets: [{{path: {text}}}]\ntokenizer: {folder}/tokenizer\nmax_length: {ROW}\nnum_proc: {num_proc}\n"
        f"repeats: '{repeats}'\noutput_dir: {folder}/out\n"
    )
    recipe = load_recipe("prepare", folder / "prepare.yaml")
    return lambda: prepare.main(recipe)


def fledge_without_repeats(folder: Path, text: Path, num_proc: int) -> Callable[[], None]:
    return fledge(folder, text, num_proc, "off")


def nanogpt(folder: Path, text: Path, num_proc: int) -> Callable[[], None]:
    import numpy as np

    tokenizer, load = _usual(folder, text)
    end = tokenizer.eos_token_id

    def process(example: dict) -> dict:
        ids = [*tokenizer(example["text"], add_special_tokens=False)["input_ids"], end]
        return {"ids": ids, "len": len(ids)}

    def run() -> None:
        tokenized = load().map(process, remove_columns=["text"], num_proc=num_proc)
        total = np.sum(tokenized["len"], dtype=np.uint64)
        ids = np.memmap(folder / "train.bin", dtype=np.uint16, mode="w+", shape=(int(total),))
        at, batches = 0, min(1024, len(tokenized))
        for index in range(batches):
            batch = tokenized.shard(num_shards=batches, index=index, contiguous=True).with_format("numpy")
            joined = np.concatenate(list(batch["ids"]))
            ids[at : at + len(joined)] = joined
            at += len(joined)
        ids.flush()

    return run


def grouped(folder: Path, text: Path, num_proc: int) -> Callable[[], None]:
    from itertools import chain

    tokenizer, load = _usual(folder, text)

    def group_texts(examples: dict) -> dict:
        joined = {name: list(chain(*lists)) for name, lists in examples.items()}
        length = len(joined["input_ids"]) // ROW * ROW
        result = {name: [ids[i : i + ROW] for i in range(0, length, ROW)] for name, ids in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    def run() -> None:
        tokenized = load().map(
            lambda b: tokenizer(b["text"]), batched=True, remove_columns=["text"], num_proc=num_proc
        )
        tokenized.map(group_texts, batched=True, num_proc=num_proc)

    return run


def packed(folder: Path, text: Path, num_proc: int) -> Callable[[], None]:
    from trl import pack_dataset

    tokenizer, load = _usual(folder, text)
    end = tokenizer.eos_token_id

    def tokenise(batch: dict) -> dict:
        return {
            "input_ids": [[*ids, end] for ids in tokenizer(batch["text"], return_attention_mask=False)["input_ids"]]
        }

    def run() -> None:
        tokenized = load().map(tokenise, batched=True, remove_columns=["text"], num_proc=num_proc)
        pack_dataset(tokenized, ROW, "bfd_split", {"num_proc": num_proc})

    return run


def _usual(folder: Path, text: Path) -> tuple:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", model_max_length=10**9)
    cache = str(folder / "cache")
    return tokenizer, lambda: datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=cache)


WAYS = {
    "fledge": fledge,
    "fledge*": fledge_without_repeats,
    "nanogpt": nanogpt,
    "grouped": grouped,
    "packed": packed,
}


def child(way: str, folder: Path, text: Path, num_proc: int) -> tuple[float, float]:
    """Seconds of one run, and the most memory it took in MB: of the process and its children together, shared once."""
    for name in ("out", "cache", "train.bin"):
        shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--text", text, "--num_proc", str(num_proc)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, _memory(process.pid))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"{way} failed")
    return float(process.stdout.read().split()[-1]), most / 1e6


def _memory(pid: int) -> int:
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--num_proc", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory", type=float, nargs="+", metavar="MB", help="measure memory at these sizes instead")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    given = outputs(parser).parse_args()
    if given.way:
        run = WAYS[given.way](given.folder, given.text, given.num_proc)
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_text(folder / "sample.jsonl", 4)
        make_tokenizer(folder, folder / "sample.jsonl")
        (memory if given.memory else speed)(given, folder)


def speed(given: argparse.Namespace, folder: Path) -> None:
    """Every way in turn, round after round; medians, and how many times longer than fledge each takes."""
    text = folder / "text.jsonl"
    make_text(text, given.megabytes)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(given.rounds):
        for way in WAYS:
            seconds[way].append(child(way, folder, text, given.num_proc)[0])
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    rows = [
        {"way": way, "seconds": median, "MB/s": given.megabytes / median, "times fledge's": median / medians["fledge"]}
        for way, median in medians.items()
    ]
    show(given, "prepare", rows)
    write(given.json, {"rounds": seconds, "medians": rows})


def memory(given: argparse.Namespace, folder: Path) -> None:
    """The memory of fledge prepare at several sizes, and what it would be at 10 GB by the line through them."""
    most, rows = [], []
    for megabytes in given.memory:
        make_text(folder / "text.jsonl", megabytes)
        seconds, peak = child("fledge", folder, folder / "text.jsonl", given.num_proc)
        most.append(peak)
        rows.append({"MB of text": megabytes, "peak memory, MB": peak, "seconds": seconds})
    given.rounds = 1
    show(given, "prepare memory", rows)
    slope, start = statistics.linear_regression(given.memory, most)
    print(f"\n{1000 * slope:.0f} MB for each GB of text; {start + 10_000 * slope:.0f} MB at 10 GB")


if __name__ == "__main__":
    main()
