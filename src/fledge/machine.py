"""What this machine does well: decides `bf16: auto` and `torch_compile: auto`, and says why."""

import ctypes
import logging
import os
import shutil
import time
from functools import cache

import torch


COMPILE_PAYS_AFTER = 60.0
"""Seconds of training above which compiling pays: the first step costs 10 to 30 s, later ones are a third shorter."""

SHARE_OF_PEAK = 0.3
"""Share of the matrix product peak that a small model reaches without compiling; for the estimate only."""

CARDS = {
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,
    "H100 PCIe": 756e12,
    "A100-SXM4-80GB": 312e12,
    "A100-SXM4-40GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "A100-PCIE-40GB": 312e12,
    "L40S": 362e12,
    "GeForce RTX 4090": 165e12,
}
"""Dense bfloat16 FLOP/s by NVIDIA's data sheets, of cards as the driver names them."""

SECONDS_FOR_A_PEAK = 0.1
"""How long `matmul_rate` measures, after one product to warm up."""

MALLOPT = {"M_MMAP_THRESHOLD": (-3, 2**31 - 1), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}
"""Parameters of glibc's malloc.h, their numbers there, and the bytes they are set to."""

logger = logging.getLogger(__name__)


def on_cpu() -> bool:
    """Whether the layout places training on the CPU (accelerate launch says so), or there is nothing else."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1") or not torch.cuda.is_available()


def world_size() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the first of the launch."""
    return os.environ.get("RANK", "0") == "0"


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler for CPU code."""
    return bool(shutil.which("g++") or shutil.which("clang++"))


def keep_freed_memory() -> None:
    """Have glibc keep blocks that are freed; another C library is left alone.

    It gives large ones back to the system after every use, so that each big tensor's pages are faulted in again:
    without that a training step on a CPU took 17% less time.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for number, value in MALLOPT.values():
            mallopt(number, value)


def choose_bf16(stated: bool | str) -> bool:
    """`auto` is true where bfloat16 products are in hardware: AMX or AVX512-BF16 on a CPU, Ampere or newer on CUDA."""
    if stated != "auto":
        return bool(stated)
    if on_cpu():
        features = torch.cpu.get_capabilities()
        found = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if features.get(name)]
        logger.info(
            "bf16 auto: %s", f"on, the CPU has {found[0]}" if found else "off, the CPU lacks bfloat16 products"
        )
        return bool(found)
    return torch.cuda.is_bf16_supported(including_emulation=False)


def choose_compile(stated: bool | str, parameters: int, tokens: float, bf16: bool) -> bool:
    """`auto` is true if there is a compiler and training would take longer than COMPILE_PAYS_AFTER seconds without."""
    if stated != "auto":
        return bool(stated)
    if on_cpu() and not has_compiler():
        logger.warning("torch_compile auto: off, there is no C++ compiler; with g++ installed training is faster")
        return False
    rate = matmul_rate(torch.bfloat16 if bf16 else torch.float32)
    seconds = 6 * parameters * tokens / (SHARE_OF_PEAK * rate * world_size())
    pays = seconds > COMPILE_PAYS_AFTER
    logger.info(
        "torch_compile auto: %s, training would take about %.0f s without (%.0f GFLOP/s in matrix products)",
        "on" if pays else "off",
        seconds,
        rate / 1e9,
    )
    return pays


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a 2048-cubed matrix product: the best, because what disturbs a product can only make it slower."""
    a = torch.randn(2048, 2048, dtype=dtype, device="cpu" if on_cpu() else "cuda")
    (a @ a)[0, 0].item()
    best, spent = float("inf"), 0.0
    while spent < SECONDS_FOR_A_PEAK:
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best, spent = min(best, seconds := time.perf_counter() - began), spent + seconds
    return 2 * 2048**3 / best


@cache
def peak_flops(bf16: bool) -> tuple[float | None, str]:
    """FLOP/s that this process could reach at most, None if unknown, and "measured" or the card's name.

    A CPU is measured, so that several processes of one machine have to ask at the same moment: together they then find
    what the machine has.
    """
    if on_cpu():
        return matmul_rate(torch.bfloat16 if bf16 else torch.float32), "measured"
    name = torch.cuda.get_device_name().removeprefix("NVIDIA ")
    return (CARDS.get(name) if bf16 else None), name
