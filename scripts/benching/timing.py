"""Seconds of a call, rounds in which all versions take their turn, and ratios of each round."""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from loc_edit.models.identity import versions

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Times = dict[str, float]


class Clock:
    """Wall time, or this process's processor time: for a machine with neighbours."""

    def __init__(self, name: str = "wall") -> None:
        self.name, self.now = name, CLOCKS[name]

    def seconds(self, run: Callable[[], object]) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = self.now()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now() - start

    def rounds(self, versions: Mapping[str, Callable[[], object]], n: int) -> list[Times]:
        """`n` rounds of all versions, in turn and then in reverse; the first call of each, which warms up, is apart."""
        names = list(versions)
        return [
            {name: self.seconds(versions[name]) for name in (names if i % 2 == 0 else reversed(names))}
            for i in range(n)
        ]


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(rounds: list[Times], top: str, bottom: str) -> dict[str, float]:
    """The median of the ratios of each round, and their range."""
    return spread_of([one[top] / one[bottom] for one in rounds])


def peak_memory() -> float:
    """MB: on a GPU what tensors took at most, else the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor(device: str) -> str:
    """The name of what computes."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def new_result(args: argparse.Namespace) -> dict[str, Any]:
    """Set the precision that the options ask for; what a file of results begins with."""
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    return {"machine": machine(args.device), "arguments": {name: str(value) for name, value in vars(args).items()}}


def machine(device: str) -> dict[str, Any]:
    """What a file of results says about where they were measured."""
    return {
        **versions(),
        "processor": processor(device),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "load before": os.getloadavg(),
    }


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """The options that all benchmarks share; `out` is where results are written by default."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="several: everything with each number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tf32", action="store_true", help="matrix products of float32 in TF32, on GPUs that have it")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, on a busy machine")
    parser.add_argument("--out", type=Path, default=Path(out))
