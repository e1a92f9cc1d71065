"""nanoGPT's train.py out of a checkout, run in this process on a CPU, for the benchmarks that name it.

No package registry has it: `git clone` its repository (karpathy/nanoGPT, MIT) and give the path with --nanogpt.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def train(
    checkout: Path, ids: np.ndarray, vocabulary: int, tuned: bool, seed: int = 1337, **settings: Any
) -> tuple[list[float], Any]:
    """Train on a stream of tokens, without checkpoints.

    Args:
        tuned: bfloat16 autocast, which train.py leaves out on a CPU, and torch.compile.
        settings: what train.py takes on its command line.

    Returns:
        When each step ended, in seconds, the first evaluation counted into the first step; and the model.
    """
    stated = {"device": "cpu", "compile": tuned, "dtype": "bfloat16" if tuned else "float32", "dataset": "rows"}
    stated |= {"gradient_accumulation_steps": 1, "eval_iters": 1, "eval_interval": 10**9, "log_interval": 1}
    code = (checkout / "train.py").read_text(encoding="utf-8").replace("manual_seed(1337", f"manual_seed({seed}")
    code = code.replace("50304", str(vocabulary))  # another one than GPT-2's it takes out of a pickle only
    if tuned:
        code = code.replace("nullcontext() if device_type == 'cpu' else ", "")
    said, names = io.StringIO(), {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(said):
        Path("data/rows").mkdir(parents=True)
        for name in ("train.bin", "val.bin"):
            ids.astype(np.uint16).tofile(f"data/rows/{name}")
        os.symlink(checkout.resolve() / "configurator.py", "configurator.py")
        sys.path.insert(0, str(checkout.resolve()))
        sys.argv = ["train.py", *(f"--{key}={value}" for key, value in (stated | settings).items())]
        exec(compile(code, "train.py", "exec"), names)
    ends, now = [], 0.0
    for milliseconds in re.findall(r"^iter \d+: .* time ([\d.]+)ms", said.getvalue(), re.MULTILINE):
        ends.append(now := now + float(milliseconds) / 1000)
    model = names["raw_model"]
    return ends, getattr(model, "_orig_mod", model)
