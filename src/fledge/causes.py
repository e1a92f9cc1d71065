"""How a process that ends tells those that started it why: `fledge run`, accelerate's launcher, torchrun."""

import json
import os
import sys
import time


EXIT_CODE_FILE = "FLEDGE_EXIT_CODE_FILE"
"""Environment variable: where a stage leaves its exit code, which accelerate's launcher turns into 1."""

CAUSE_FILE = "FLEDGE_CAUSE_FILE"
"""Environment variable: where each process of a stage that fails leaves a line that says why."""


class NotPushed(Exception):
    """Training is done and its result whole, but not all of it has reached the hub."""

    exit_code = 69
    """EX_UNAVAILABLE of sysexits.h."""


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
