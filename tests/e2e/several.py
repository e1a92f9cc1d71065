"""Several stages, ` -- ` between them, in the processes of one launch: importing is most of a tiny stage's time."""

import sys

from accelerate.state import AcceleratorState

from fledge.cli import main


for command in " ".join(sys.argv[1:]).split(" -- "):
    if code := main(command.split()):
        sys.exit(code)
    AcceleratorState._reset_state()
