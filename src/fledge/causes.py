"""How a process that ends tells those that started it why: `fledge run`, accelerate's launcher, torchrun."""

import json
import os
import sys
import time
from pathlib import Path

from .preempted import Preempted


EXIT_CODE_FILE = "FLEDGE_EXIT_CODE_FILE"
"""Environment variable: where a stage leaves its exit code, which accelerate's launcher turns into 1."""

CAUSE_FILE = "FLEDGE_CAUSE_FILE"
"""Environment variable: where each process of a stage that fails leaves a line that says why."""


class NotPushed(Exception):
    """Training is done and its result whole, but not all of it has reached the hub."""

    exit_code = 69
    """EX_UNAVAILABLE of sysexits.h."""


def leave_with(code: int, what: object) -> int:
    """Print why a command ends and leave its exit code for `fledge run`, which the launcher between them hides.

    Returns the code to end with: `code`, or 0 after a training that only was not pushed and whose chain has read the
    file. torchrun would call it a failure, and add a page about that.
    """
    several, rank = os.environ.get("WORLD_SIZE", "1") != "1", os.environ.get("RANK", "0")
    is_whole = code in (Preempted.exit_code, NotPushed.exit_code)
    if several and not is_whole:
        tell_cause(str(what))
    elif rank == "0":
        print(f"fledge: {what}", file=sys.stderr)
    code_file = os.environ.get(EXIT_CODE_FILE)
    if code_file:
        Path(code_file).write_text(str(code))
    return 0 if code_file and code == NotPushed.exit_code else code


def tell_cause(text: str) -> None:
    """Say why this process ends, and leave it for `fledge run` and for torchrun, whose last words it becomes."""
    line = f"process {os.environ.get('RANK', '0')}: {text}"
    print(f"fledge: {line}", file=sys.stderr, flush=True)
    if file := os.environ.get(CAUSE_FILE):
        with open(file, "a", encoding="utf-8") as causes:
            causes.write(line + "\n")
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        # As torch.distributed.elastic.multiprocessing.errors writes it, with a line in the place of a call stack.
        told = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with open(file, "w", encoding="utf-8") as error:
            json.dump({"message": told}, error)
