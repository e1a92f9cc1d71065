"""`python -m fledge.publishing OUTPUT_DIR`: pushes beside training, whenever that writes a byte, and ends with it.

One process for a whole run, because starting one, two seconds of imports, would cost training more than a push does.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from .outbox import Outbox
from .push import push_all


PR_SET_PDEATHSIG = 1

os.nice(19)  # training comes first
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
failed = False
while os.read(sys.stdin.fileno(), 4096):  # all that was said meanwhile at once; nothing when training has ended
    try:
        failed = bool([why for _, why in push_all(Outbox(Path(sys.argv[1]))) if why])
    except ValueError as error:  # another one is at it
        failed = True
        print(error, file=sys.stderr)
sys.exit(failed)
