"""Slurm's programs for one machine: jobs run at once, each of their machines is a process. Run as a script.

fake_slurm.py sbatch|srun|scancel|scontrol ARGUMENTS, with FAKE_SLURM the folder of its state: NUMBER.json a job.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path


STATE = Path(os.environ.get("FAKE_SLURM", "."))


def install(folder: Path, first_job: int) -> dict[str, str]:
    """Put the four programs into `folder`; returns the environment that makes them be found."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scancel", "scontrol"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        program.chmod(0o755)
    (folder / "next").write_text(str(first_job))
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`--key=value` options, and what follows them."""
    count = next((index for index, word in enumerate(words) if not word.startswith("--")), len(words))
    return {key: value for key, _, value in (word[2:].partition("=") for word in words[:count])}, words[count:]


def sbatch(words: list[str]) -> int:
    """Run a job to its end, unless one it waits for did not end well; print its number."""
    stated, [path] = split(words)
    text = Path(path).read_text(encoding="utf-8")
    head = re.match(r"(#.*\n)*", text)[0]  # sbatch reads no further than the first command
    options, _ = split(re.findall(r"^#SBATCH (--.*)$", head, re.MULTILINE))
    number = int((STATE / "next").read_text())
    (STATE / "next").write_text(str(number + 1))
    after = stated.get("dependency", "").split(":")[1:]
    well = all(json.loads((STATE / f"{other}.json").read_text())["code"] == 0 for other in after)
    code = run(number, text, options) if well else None
    job = {"script": path, "after": stated.get("dependency"), "code": code, "options": options}
    (STATE / f"{number}.json").write_text(json.dumps(job))
    print(f"{number};here")
    return 0


def run(number: int, text: str, options: dict[str, str]) -> int:
    """The exit code of a job's script."""
    spooled = STATE / f"{number}.sh"
    spooled.write_text(text)
    told = {"JOB_ID": str(number), "NNODES": options.get("nodes", "1"), "JOB_NODELIST": "127.0.0.1,elsewhere"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in told.items()}}
    [output] = shlex.split(options["output"])
    with Path(output.replace("%j", str(number))).open("a") as log:
        return subprocess.run(["bash", str(spooled)], env=environment, stdout=log, stderr=log).returncode


def srun(words: list[str]) -> int:
    """The command once for every machine of the job; the highest exit code."""
    options, command = split(words)
    tasks = []
    for node in range(int(os.environ["SLURM_NNODES"])):
        with Path(options["output"].replace("%n", str(node))).open("a") as log:
            environment = {**os.environ, "SLURM_NODEID": str(node)}
            tasks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
    (STATE / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(abs(task.wait()) for task in tasks)


def scancel(words: list[str]) -> int:
    """`--signal=NAME JOB`: the signal to every task of the last step; returns late, when the step may have ended."""
    options, _ = split(words)
    for task in (STATE / "tasks").read_text().split():
        os.kill(int(task), signal.Signals[f"SIG{options['signal']}"])
    time.sleep(0.5)
    return 0


def scontrol(words: list[str]) -> int:
    """`show hostnames LIST`, and `requeue JOB`, which is only written down."""
    if words[0] == "show":
        print("\n".join(words[2].split(",")))
    else:
        (STATE / "requeued").write_text(words[1])
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scancel": scancel, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
