"""What a user waits for besides training: the help, a stage's start, saving checkpoints.

python benchmarks/overheads.py            # after make demo: its tokenizer and rows are read from runs/tang-poems

help        seconds of `fledge --help`, in a process of its own
start       seconds from the start of a `fledge pretrain` process until its first step begins: imports, data, model
first words seconds until the first words of an answer appear, after the question, in a `fledge chat` that has loaded
saving      share of the stage's time that its checkpoints take, at the recipe's two in a run
data wait   share of the training time that a step waits for its rows
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, parsed, parser, show, write


WANTED = {"help": "< 0.3 s", "start": "< 12 s", "first words": "< 0.3 s", "saving": "< 5%", "data wait": "< 1%"}


def fledge(*words: str) -> float:
    """Run a command of ours; seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "fledge", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"fledge {' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - began


def pretrain(run: Path, steps: int, folder: str) -> dict[str, float]:
    """The recipe's pretraining, with a checkpoint in the middle and one at the end."""
    from fledge.files import read_json

    paths = ["--tokenizer", f"{run}/tokenizer", "--prepared", f"{run}/prepare", "--output_dir", folder]
    length = ["--max_steps", str(steps), "--save_steps", str(max(1, steps // 2)), "--warmup_steps", "1"]
    fledge("pretrain", "recipes/tang-poems/pretrain.yaml", *paths, *length)
    summary = read_json(Path(folder) / "summary.json")
    results = summary["results"]
    return {
        "start": results["start_seconds"],
        "saving": results["save_seconds"] / summary["seconds"],
        "data wait": results["data_wait"],
    }


def first_words(run: Path) -> float:
    """Seconds from the first question until its answer begins."""
    command = [sys.executable, "-m", "fledge", "chat", str(run)]
    piped = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, bufsize=0, **piped) as chat:
        chat.stdin.write(b"/params\n")
        said = []
        while not (line := chat.stderr.readline()).startswith(b"("):  # it is loaded when it answers
            said.append(line)
            if not line:
                raise SystemExit(f"fledge chat failed:\n{b''.join(said).decode()}")
        began = time.perf_counter()
        chat.stdin.write("写一首五言绝句，题为《山行》。\n".encode())
        answered = chat.stdout.read(1)
        seconds = time.perf_counter() - began
        _, rest = chat.communicate()
        if not answered:
            raise SystemExit(f"fledge chat gave no answer:\n{rest.decode()}")
    return seconds


def main() -> None:
    options = parser(__doc__, compares=False)
    options.add_argument("--steps", type=int, default=310, help="of pretraining; 310, the recipe's, if left out")
    given = parsed(options)
    found = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            own = {"help": fledge("--help"), "first words": first_words(given.run.resolve())}
            found.append(own | pretrain(given.run.resolve(), given.steps, f"{folder}/run"))
    medians = {name: statistics.median(each[name] for each in found) for name in WANTED}
    rows = [{"what": name, "measured": value, "wanted": WANTED[name]} for name, value in medians.items()]
    show(given, "overheads", rows)
    write(given.json, {"rounds": found, "medians": medians})


if __name__ == "__main__":
    main()
