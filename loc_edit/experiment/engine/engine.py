"""Where tasks are computed: in this process, in processes beside it, or on a Ray cluster.

Every engine is one function: streams of tasks in, results out in the order in which they finish.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loc_edit.experiment.engine.local import in_processes, in_this_process


@dataclass(frozen=True)
class Engine:
    """Which engine, and how much of it.

    Attributes:
        name: `local` (this machine), or `ray`.
        workers: how many compute side by side; `local` with 1 is this process; `None` leaves it to Ray.
        address: of a Ray cluster: `auto`, `ray://host:10001`, `host:6379`; `None` starts one on this machine.
        gpus: GPUs of each Ray worker; `None` for one if the cluster has any, else none.
    """

    name: Literal["local", "ray"] = "local"
    workers: int | None = 1
    address: str | None = None
    gpus: float | None = None


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compute_tasks(
    streams: Sequence[Sequence[Any]], open_worker: Callable[[], Callable[[Any], Any]], engine: Engine
) -> Iterator[tuple[Any, Any]]:
    """Every task of every stream with its result, in the order in which they finish.

    Args:
        streams: tasks; one worker computes the tasks of a stream in their order, and so computes what they share once.
        open_worker: called once in each worker; makes what computes a task there.
        engine: where.

    Raises:
        WorkerDied: a task has ended several workers, because memory ran out or by a signal.
    """
    if engine.name == "ray":
        from loc_edit.experiment.engine.cluster import on_ray  # an optional dependency

        return on_ray(streams, open_worker, engine.workers, address=engine.address, gpus=engine.gpus)
    workers = engine.workers or cores()
    if workers == 1:
        return in_this_process(streams, open_worker)
    return in_processes(streams, open_worker, workers, cores())
