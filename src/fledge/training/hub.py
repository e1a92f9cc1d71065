"""`push_to_hub` of a training stage: every save is put into an outbox, which a process beside training empties.

The Trainer's own way asks the hub before the first step, which fails where it is down, and says nothing of a push that
fails later. Here training never waits for the hub and computes the same without it: what did not arrive goes on
waiting beside the run, the exit code says so, and `fledge publish` sends it.
"""

import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import get_token
from transformers import TrainingArguments

from fledge.causes import CAUSE_FILE, EXIT_CODE_FILE, NotPushed
from fledge.publishing.outbox import FINAL, Outbox, Parcel, check_repo
from fledge.recipe import Recipe


OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE", CAUSE_FILE, EXIT_CODE_FILE)
"""Environment variables through which a process of a launch tells how it ended; a pushing one must not."""

logger = logging.getLogger(__name__)


def check_hub(recipe: Recipe, values: dict[str, object]) -> None:
    """Raise ValueError for what `push_to_hub` cannot do, before anything is trained.

    Args:
        values: the recipe's keys of the Hugging Face dataclass.
    """
    if not values.get("push_to_hub"):
        return
    check_repo(values.get("hub_model_id"), "hub_model_id")
    if (strategy := values.get("hub_strategy", "every_save")) not in ("every_save", "end"):
        raise ValueError(
            f"hub_strategy: {strategy} would push optimizer and random state, which are pickles; write every_save, or "
            "end for the final model alone"
        )
    for key in ("hub_always_push", "hub_revision"):
        if values.get(key):
            raise ValueError(f"{key}: nothing is left out, and every step has its own revision; leave the key out")
    if recipe.values.get("use_peft"):
        raise ValueError(
            "push_to_hub: an adapter alone would name a folder of this machine as its base; export it, which merges it"
        )
    if get_token() is None:
        raise ValueError("push_to_hub: no token; log in with `hf auth login`, or set HF_TOKEN in the environment")


class Courier:
    """Puts models into the outbox of a run, and has one process beside training that empties it."""

    def __init__(self, args: TrainingArguments, seconds: float) -> None:
        self.outbox = Outbox(Path(args.output_dir))
        self.every_save = args.hub_strategy == "every_save"
        self.repo, self.private = args.hub_model_id, args.hub_private_repo
        self.seconds = seconds
        self._start()

    def put(self, folder: Path, step: int | None = None, tokens: float = 0.0) -> None:
        """Let a model wait; it is on its way only after `go`.

        Args:
            step: None for the final one.
            tokens: trained on up to the step, for its tag.
        """
        revision, tag = (FINAL, None) if step is None else (f"step-{step}", f"tokens-{round(tokens)}")
        self.outbox.put(folder, Parcel(self.repo, revision, tag, self.private))

    def go(self) -> None:
        """Have the outbox emptied; returns at once."""
        if self._process.poll() is not None:
            self._start()
        with suppress(BrokenPipeError):  # it has died since; the next call starts another
            os.write(self._process.stdin.fileno(), b"\n")

    def _start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in OF_A_LAUNCH}
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # its errors are to be seen, its progress is not
        command = [sys.executable, "-m", "fledge.publishing", str(self.outbox.folder.parent)]
        quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, bufsize=0, **quiet)

    def finish(self) -> None:
        """Wait for all that waits, for so many seconds at most.

        Raises:
            NotPushed: something has not arrived.
        """
        deadline = time.monotonic() + self.seconds
        waiting = len(self.outbox.waiting())
        logger.info("pushing %d revision(s) to %s, for %.0f s at most", waiting, self.repo, self.seconds)
        for _ in range(2):  # a second try for what failed
            self.go()
            self._process.stdin.close()
            try:
                self._process.wait(deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                break
            if not self.outbox.waiting():
                return
        if waiting := self.outbox.waiting():
            lines = [line["failed"] for line in self.outbox.journal() if "failed" in line]
            late = f"the hub did not answer within {self.seconds:.0f} s"
            ended = self._process.returncode
            why = lines[-1] if lines else late if ended < 0 else f"what pushes ended with code {ended}"
            raise NotPushed(
                f"trained, and not pushed: {len(waiting)} revision(s) wait for {self.repo} ({why}); "
                f"fledge publish {self.outbox.folder.parent} sends them"
            )
