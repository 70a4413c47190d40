"""Worker processes that compute units side by side, each with the model in its memory once.

A stream of tasks (the units of one chunk of facts) stays with one worker, which so computes once what they share.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

Compute = Callable[[Any], Any]
"""Task -> result, in a worker."""


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a unit; what was written before is kept."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread_out(
    streams: Sequence[Sequence[Any]], open_worker: Callable[[], Compute], workers: int
) -> Iterator[tuple[Any, Any]]:
    """Every task of every stream with its result, in the order in which they finish.

    Args:
        streams: tasks; those of one stream are computed in their order by one worker.
        open_worker: called once in each worker; makes what computes a task there.
        workers: number of processes.

    Raises:
        WorkerDied: a worker ended, for want of memory or by a signal.
    """
    waiting = deque(deque(stream) for stream in streams if stream)
    threads = max(1, cores() // workers)
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks in any state
    lanes = [
        ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(open_worker, threads))
        for _ in range(min(workers, len(waiting)))
    ]
    mine: dict[ProcessPoolExecutor, deque[Any]] = {lane: deque() for lane in lanes}
    running: dict[Future[Any], tuple[ProcessPoolExecutor, Any]] = {}

    def give(lane: ProcessPoolExecutor) -> None:
        if not mine[lane] and waiting:
            mine[lane] = waiting.popleft()
        if mine[lane]:
            task = mine[lane].popleft()
            running[lane.submit(_work, task)] = (lane, task)

    try:
        for lane in lanes:
            give(lane)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, task = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise WorkerDied(f"a worker process ended while it computed {task}; run again to go on") from error
                give(lane)
                yield task, result
    finally:
        for lane in lanes:
            _stop(lane)


def _stop(lane: ProcessPoolExecutor) -> None:
    """End a worker at once: what it has not finished is computed when the run goes on."""
    processes = list((lane._processes or {}).values())
    lane.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


_compute: Compute | None = None


def _start(open_worker: Callable[[], Compute], threads: int) -> None:
    """Make a fresh process a worker; Ctrl-C is for the one who gave it work."""
    global _compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _compute = open_worker()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:
    assert _compute is not None
    return _compute(task)
