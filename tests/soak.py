"""Random faults for hours: which, when, in which stage and on which engine is drawn from a seed that is printed.

make soak                                       # 200 faults, two hours at most; writes docs/soak.md
python tests/soak.py --faults 20 --seed 7

On one process a fault strikes at any change of the run's folder (e2e/nursery.py); on two, DDP and ZeRO-2 through
`accelerate launch`, at any moment. Up to three strike in a row before the run may end, and then its metrics, weights
and optimizer have to be those of a run that met none.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from e2e.conftest import furnish
from e2e.nursery import DISK_FULL, KILL, TERMINATE, Nursery, nursery
from e2e.test_crashes import STAGES, Patient
from e2e.test_engines import on_cpus
from e2e.test_preemption import stage_processes
from e2e.workspace import ROOT, TINY, Workspace, kill, losses, sha256


NAMES = {KILL: "kill -9", DISK_FULL: "disk full", TERMINATE: "SIGTERM"}
ENDS = {KILL: {-9, 0}, DISK_FULL: {2, 0}, TERMINATE: {75, 0}}
"""Exit codes a fault may end a run with; 0 where it strikes after the last change."""
ON_TWO = 0.1
"""Share of the chains that run on two processes, which take ten times as long."""
Row = tuple[str, str, str]
"""Stage, engine, fault."""


class Two:
    """Pretraining on two processes of an engine."""

    def __init__(self, workspace: Workspace, engine: str) -> None:
        self.workspace, self.engine = workspace, engine
        self.output = workspace.run_folder / engine
        words = ["accelerate", "launch", "--config_file", on_cpus(workspace, engine, 2), "-m", "fledge", "pretrain"]
        options = ["--muon_learning_rate", "null", "--model_config.attention_dropout", "0.1", "--save_steps", "3"]
        self.command = [*words, f"{TINY}/pretrain.yaml", *options, "--output_dir", f"runs/tiny/{engine}"]
        workspace.run(*self.command)
        self.wanted = self.end()

    def end(self) -> tuple[list[float], str]:
        found = losses(self.output), sha256(self.output / "model.safetensors")
        self.output.rename(self.output.with_name(f"{self.engine}-{time.monotonic_ns()}"))
        return found

    def struck(self, kind: int, chance: random.Random) -> None:
        """Start it, and let the fault strike after some line of its metrics: both processes or one of them."""
        process, line = self.workspace.start(*self.command), chance.randint(0, 11)
        while process.poll() is None and not (self.output / "metrics.jsonl").is_file():
            time.sleep(0.01)
        while process.poll() is None and len(losses(self.output)) < line:
            time.sleep(0.01)
        ranks = stage_processes(process.pid) if process.poll() is None else []
        for each in ranks if chance.random() < 0.5 else ranks[1:]:
            os.kill(each.pid, signal.SIGKILL if kind == KILL else signal.SIGTERM)
        try:
            process.communicate(timeout=90)
        finally:
            kill(process)


def soak(
    count: int, seconds: float, seed: int, workspace: Workspace, forks: Nursery
) -> tuple[Counter[Row], list[str]]:
    """Faults by stage, engine and kind, and what went wrong."""
    chance, until = random.Random(seed), time.monotonic() + seconds
    alone = {stage: Patient(workspace.copy(workspace.folder / stage), forks, stage) for stage in STAGES}
    two = {engine: Two(workspace.copy(workspace.folder / engine), engine) for engine in ("ddp", "zero2")}
    done: Counter[Row] = Counter()
    wrong: list[str] = []
    while done.total() < count and time.monotonic() < until:
        drawn: list[Row] = []
        try:
            if chance.random() < ON_TWO:
                engine = chance.choice([*two])
                for _ in range(chance.randint(1, 2)):
                    kind = chance.choice((KILL, TERMINATE))
                    drawn.append(("pretrain", f"{engine}, 2 processes", NAMES[kind]))
                    two[engine].struck(kind, chance)
                two[engine].workspace.run(*two[engine].command)
                assert two[engine].end() == two[engine].wanted
            else:
                stage = chance.choice([*alone])
                for _ in range(chance.randint(1, 3)):
                    kind, at = chance.choice([*NAMES]), chance.randint(1, alone[stage].unbroken.changes)
                    drawn.append((stage, "1 process", f"{NAMES[kind]} at change {at}"))
                    lived = alone[stage].run(kind, at)
                    assert lived.code in ENDS[kind], lived.text
                alone[stage].recovers()
        except Exception as error:  # whatever it is: the table has to say it, and the others go on
            wrong.append(f"{drawn}: {type(error).__name__}: {str(error)[-2000:]}")
            for chain in (*alone.values(), *two.values()):
                shutil.rmtree(chain.output, ignore_errors=True)
        done.update((stage, engine, kind.partition(" at ")[0]) for stage, engine, kind in drawn)
        print(f"{done.total()}/{count} {'WRONG ' if wrong else ''}{drawn}", flush=True)
    return done, wrong


def page(done: Counter[Row], wrong: list[str], seed: int, minutes: float) -> str:
    lines = ["| stage | engine | fault | times |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} | {times} |" for row, times in sorted(done.items())]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    said = f"{done.total()} faults in {minutes:.0f} minutes on 2 CPU cores, {date}, `tests/soak.py`, seed {seed}: "
    said += (
        f"{len(wrong)} chains did not end as the unbroken ones did." if wrong else "every chain ended to the bit as "
    )
    said += (
        ""
        if wrong
        else "the unbroken one: losses, weights and, on one process, optimizer, scheduler and random state."
    )
    return "\n".join(["# The last soak", "", said, "", *lines, "", *wrong]).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "soak.md")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "chain")
        furnish(workspace.folder)
        workspace.fledge("run", TINY)
        began = time.monotonic()
        with nursery(Path(folder), workspace.environment()) as forks:
            done, wrong = soak(options.faults, options.hours * 3600, options.seed, workspace, forks)
    options.page.parent.mkdir(exist_ok=True)
    options.page.write_text(page(done, wrong, options.seed, (time.monotonic() - began) / 60), encoding="utf-8")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
