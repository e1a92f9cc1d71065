"""Planned memory beside what torch holds: fake tensors of the 1.1B shape, and real CPU runs of small models. Slow."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import trl.kernels.chunked_logprob as kernel
from test_planning import GPT2, LILLM, TINYLLAMA, job_of, recipes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from trl.trainer.utils import add_fused_lm_head

from fledge.model.configuration_fledge import FledgeConfig
from fledge.model.modeling_fledge import FledgeForCausalLM
from fledge.planning.fit import GIB
from fledge.planning.memory import Place, peak


pytestmark = pytest.mark.slow

ROWS, LENGTH = 4, 2048


@pytest.fixture
def fake_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts process groups whose other members do not exist; TRL's kernels, which work in place, do nothing."""
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(kernel, name, lambda *_, **__: None)

    def start(size: int) -> None:
        dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())

    yield start
    dist.destroy_process_group()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(("engine", "world"), [("ddp", 8), ("fsdp2", 8), ("fsdp2", 16)])
def test_the_whole_is_what_torchs_memory_trackers_see(
    engine: str, world: int, checkpointing: bool, accumulation: int, tmp_path: Path, fake_world: Any
) -> None:
    # DDP on 16 GPUs holds what it holds on 8. CPU kernels stand in for CUDA's: the same tensors, no GPU.
    fake_world(world)
    tracked = tracked_peak(engine, world, checkpointing, accumulation)
    per_step = ROWS * LENGTH * world * accumulation
    folder = recipes(tmp_path / "recipes" / "tinyllama", pretrain={"model_config": TINYLLAMA})
    options = ["--tokens_per_step", f"{per_step}", "--per_device_train_batch_size", f"{ROWS}"]
    job = job_of(folder, "pretrain", *options, "--attn_implementation", "sdpa")  # a CPU's varlen keeps less
    shards = world if engine == "fsdp2" else 1

    planned = peak(job, Place(engine, world, shards), ROWS, accumulation, checkpointing)["peak"]

    print(f"{engine} {world}: planned {planned / GIB:.2f} GiB, tracked {tracked / GIB:.2f} GiB")
    assert planned == pytest.approx(tracked, rel=0.1)


def tracked_peak(engine: str, world: int, checkpointing: bool, accumulation: int) -> int:
    """Bytes at the fullest moment of the second step: in the first one the tracker misplaces what is set up once."""
    is_fsdp, mesh = engine == "fsdp2", init_device_mesh("cpu", (world,))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = FledgeForCausalLM(FledgeConfig(**TINYLLAMA)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        add_fused_lm_head(model)
        if is_fsdp:
            shard(model, mesh)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.randint(0, 100, (ROWS, LENGTH))
        positions = torch.arange(LENGTH)[None].expand(ROWS, LENGTH)
        mask = torch.ones(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool)
        batch = {"input_ids": ids, "labels": ids, "position_ids": positions, "attention_mask": mask}

        def step(tracker: MemTracker | None = None) -> None:
            for index in range(accumulation):
                if tracker and index:
                    tracker.reset_mod_stats()
                if is_fsdp:
                    model.set_requires_gradient_sync(index == accumulation - 1)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(**batch, fused_lm_head=True).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        tracker = FSDPMemTracker(model, optimizer) if is_fsdp else MemTracker()
        if is_fsdp:
            tracker.track_inputs((ids, positions, mask))
        else:
            tracker.track_external(model, optimizer, ids, positions, mask)
        with tracker:
            buckets = [torch.empty_like(weight) for weight in model.parameters() if engine == "ddp"]
            step(tracker)
        assert bool(buckets) == (engine == "ddp")
        return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def shard(model: FledgeForCausalLM, mesh: DeviceMesh) -> None:
    """FSDP2 as Accelerate makes it (fsdp2_prepare_model), with the precision that fledge gives it."""
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    keys = {"mesh": mesh, "mp_policy": policy}
    for layer in model.model.layers:
        fully_shard(layer, **keys, reshard_after_forward=True)
    fully_shard(model.model.embed_tokens, **keys, reshard_after_forward=True)
    # Accelerate makes one more unit, of the last norm and the head, that stays gathered. The tracker wants every unit
    # to be called, and the fused head only reads the weight; in the root it stays gathered as well.
    fully_shard(model, **keys)


RUN = """
import gc, json, sys, threading, time
import psutil, torch
from trl.trainer.utils import add_fused_lm_head
from fledge.model import register
from fledge.model.build import build_model
from fledge.training import cpu_head
from transformers import AutoConfig

run = json.loads(sys.argv[1])
register()
cpu_head.install()
own = psutil.Process()

def make(**changes):
    keys = run["config"] | changes
    config = AutoConfig.for_model(keys.pop("model_type", "fledge"), **keys)
    model = build_model(config).train()
    model.set_attn_implementation(run["attention"])
    if run["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model)
    return model, torch.optim.AdamW(model.parameters(), fused=True)

def step(model, optimizer, rows, length):
    half = torch.arange(length // 2)
    ids, positions = torch.randint(0, 64, (rows, length)), torch.cat([half, half])[None].repeat(rows, 1)
    for _ in range(run["accumulation"]):
        with torch.autocast("cpu", torch.bfloat16, enabled=run["bf16"]):
            out = model(input_ids=ids, position_ids=positions, labels=ids, fused_lm_head=True, use_cache=False)
        out.loss.backward()
        del out
    optimizer.step()
    optimizer.zero_grad()

def watch():
    global top
    while not stop:
        top = max(top, own.memory_info().rss)
        time.sleep(0.002)

step(*make(vocab_size=64, num_hidden_layers=1), 1, 16)  # the libraries' own memory, before the count begins
gc.collect()
before, top, stop = own.memory_info().rss, 0, False
thread = threading.Thread(target=watch)
thread.start()
pair = make()
for _ in range(2):
    step(*pair, run["rows"], run["length"])
stop = True
thread.join()
print(top - before)
"""


@pytest.mark.parametrize(
    ("config", "rows", "length", "keys"),
    [
        (LILLM, 8, 512, {"attn_implementation": "sdpa", "bf16": False}),
        (LILLM, 8, 512, {"attn_implementation": "sdpa", "bf16": True, "activation_checkpointing": True}),
        (LILLM | {"num_hidden_layers": 6}, 32, 192, {"attn_implementation": "eager", "bf16": True}),
        (GPT2, 16, 256, {"attn_implementation": "sdpa", "bf16": True}),
    ],
    ids=["llama", "llama-checkpointed", "llama-eager", "gpt2"],
)
def test_a_run_on_a_cpu_takes_what_was_planned(
    config: dict[str, Any], rows: int, length: int, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = config | ({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if "n_embd" in config else {})
    folder = recipes(
        tmp_path / "recipes" / "small",
        prepare={"max_length": length},
        pretrain={"model_config": config, "tokens_per_step": 2 * rows * length, **keys},
    )
    job = job_of(folder, "pretrain", "--per_device_train_batch_size", f"{rows}")
    planned = peak(job, Place("single", 1, 1, on_gpu=False), rows, 2, job.checkpointing)["peak"]

    run = {
        "config": config,
        "attention": keys["attn_implementation"],
        "bf16": keys["bf16"],
        "checkpointing": job.checkpointing,
        "accumulation": 2,
        "rows": rows,
        "length": length,
    }
    # Every larger block by itself, so that memory that is given back leaves the process.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", RUN, json.dumps(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])

    print(f"planned {planned / GIB:.3f} GiB, measured {measured / GIB:.3f} GiB")
    assert planned == pytest.approx(measured, rel=0.15)
