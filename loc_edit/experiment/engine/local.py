"""Tasks computed in this process, or side by side in processes of this machine, each with the model in its memory.

A lane is one worker process and the tasks that it has in front of it; `loky` keeps the process.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from loky import ProcessPoolExecutor

log = logging.getLogger(__name__)

Compute = Callable[[Any], Any]
"""Task -> result, in a worker."""

TRIES = 3
"""How many workers a task may end before the run gives up."""


class WorkerDied(RuntimeError):
    """Workers ended in the middle of a task, again and again; what was written before is kept."""


def in_this_process(streams: Sequence[Sequence[Any]], open_worker: Callable[[], Compute]) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, one after another."""
    if any(streams):
        compute = open_worker()
        yield from ((task, compute(task)) for stream in streams for task in stream)


def in_processes(
    streams: Sequence[Sequence[Any]], open_worker: Callable[[], Compute], workers: int, cores: int
) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, in the order in which they finish; a worker that dies is replaced.

    Args:
        streams: tasks; a stream stays with one worker.
        open_worker: called once in each worker; makes what computes a task there.
        workers: number of processes.
        cores: how many cores of the machine the workers share.

    Raises:
        WorkerDied: a task has ended `TRIES` workers.
    """
    waiting = deque(deque(stream) for stream in streams if stream)
    lanes = [_Lane(open_worker, max(1, cores // workers)) for _ in range(min(workers, len(waiting)))]
    running: dict[Future[Any], tuple[_Lane, Any]] = {}

    def give(lane: _Lane) -> None:
        if not lane.tasks and waiting:
            lane.tasks = waiting.popleft()
        if lane.tasks:
            task = lane.tasks.popleft()
            running[lane.submit(task)] = (lane, task)

    try:
        for lane in lanes:
            give(lane)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, task = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    lane.replace(task, error)
                    running[lane.submit(task)] = (lane, task)
                    continue
                lane.deaths = 0
                give(lane)
                yield task, result
    finally:
        for lane in lanes:
            lane.stop()


class _Lane:
    """One worker process and the tasks of its stream."""

    def __init__(self, open_worker: Callable[[], Compute], threads: int) -> None:
        self.tasks: deque[Any] = deque()
        self.deaths = 0
        self._arguments = (open_worker, threads)
        self._start()

    def _start(self) -> None:
        # The worker keeps the model, so it is not to end for want of work.
        self._pool = ProcessPoolExecutor(1, timeout=None, initializer=_start, initargs=self._arguments)

    def submit(self, task: Any) -> Future[Any]:
        return self._pool.submit(_compute_in_worker, task)

    def replace(self, task: Any, error: BrokenProcessPool) -> None:
        """A new process in place of one that died while it computed `task`."""
        self.deaths += 1
        if self.deaths >= TRIES:
            raise WorkerDied(
                f"{TRIES} worker processes ended while they computed {task} (is memory enough?); "
                "rows finished before are kept, run again to go on"
            ) from error
        log.warning("a worker process ended while it computed %s: it is computed again", task)
        self.stop()
        self._start()

    def stop(self) -> None:
        """End the worker at once: what it has not finished is computed when the run goes on."""
        self._pool.shutdown(wait=False, kill_workers=True)


_compute: Compute | None = None


def _start(open_worker: Callable[[], Compute], threads: int) -> None:
    """Make a fresh process a worker; Ctrl-C is for the process that gave it work."""
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


def _compute_in_worker(task: Any) -> Any:
    assert _compute is not None
    return _compute(task)
