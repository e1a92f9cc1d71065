"""A process that has imported everything forks one child per command: hundreds of real runs fit into minutes.

The server runs under crash.c, so a child can be made to die, to be asked to make room or to find the disk full at any
one of the changes that it makes to its run's folder.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


NOTHING, KILL, DISK_FULL, TERMINATE = range(4)
LIBRARY = Path(__file__).with_name("crash.c")


@dataclass(frozen=True)
class Lived:
    """How a child ended: its exit code, or minus the signal; how often it changed the folder; what it printed."""

    code: int
    changes: int
    text: str


class Nursery:
    """Runs `fledge ARGUMENTS` in a folder, in a child of a warm process."""

    def __init__(self, server: subprocess.Popen[str], log: Path) -> None:
        self._server, self._log = server, log

    def run(
        self, folder: Path, *arguments: str, watched: str, kind: int = NOTHING, at: int = 0, **environment: str
    ) -> Lived:
        """Run a command; `kind` happens to it at its `at`-th change below `watched`, a path below `folder`."""
        wanted = {"folder": str(folder), "arguments": arguments, "watched": str(folder / watched)}
        wanted["environment"] = environment
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps({**wanted, "kind": kind, "at": at, "log": str(self._log)}) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Lived(answer["code"], answer["changes"], self._log.read_text(encoding="utf-8").replace("\r", "\n"))


@contextmanager
def nursery(folder: Path, environment: dict[str, str]) -> Iterator[Nursery]:
    """Compile crash.c into `folder` and start the server."""
    library = folder / "crash.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(LIBRARY)], check=True)
    server = subprocess.Popen(
        [sys.executable, __file__, str(library)],
        env={**environment, "LD_PRELOAD": str(library)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Nursery(server, folder / "child.log")
    finally:
        server.stdin.close()
        server.wait(30)


def _serve(library: ctypes.CDLL) -> None:
    import trl  # noqa: F401

    import fledge.stages.dpo
    import fledge.stages.pretrain
    import fledge.stages.sft  # noqa: F401

    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            _live(library, wanted)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "changes": library.crash_calls()}), flush=True)


def _live(library: ctypes.CDLL, wanted: dict) -> None:
    """What the child does; never returns."""
    from fledge.cli import main

    code = 1
    try:
        log = os.open(wanted["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(wanted["folder"])
        os.environ.update(wanted["environment"])
        library.crash_below(wanted["watched"].encode(), ctypes.c_long(wanted["at"]), wanted["kind"])
        code = main(wanted["arguments"])
    except BaseException:  # what a Python that ends by it would print
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    loaded = ctypes.CDLL(sys.argv[1])
    loaded.crash_calls.restype = ctypes.c_long
    _serve(loaded)
