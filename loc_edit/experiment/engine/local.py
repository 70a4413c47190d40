"""Tasks computed in this process, or side by side in processes of this machine, each with the model in its memory."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from loky import ProcessPoolExecutor

from loc_edit.experiment.engine.lanes import Compute, Lane, compute_in_lanes


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
        WorkerDied: a task has ended several workers.
    """
    n_lanes = min(workers, len([stream for stream in streams if stream]))
    return compute_in_lanes(streams, [_Process(open_worker, max(1, cores // workers)) for _ in range(n_lanes)])


class _Process(Lane):
    """A worker process, kept by `loky`: its pool ends and replaces processes by public calls."""

    died = (BrokenProcessPool,)

    def __init__(self, open_worker: Callable[[], Compute], threads: int) -> None:
        super().__init__()
        self._arguments = (open_worker, threads)
        self._pool: Any = None

    def start(self) -> Future[Any]:
        self.stop()
        self._pool = ProcessPoolExecutor(1, timeout=None)  # the worker keeps the model, so it waits without a limit
        return self.submit_call(_open, *self._arguments)

    def submit(self, task: Any) -> Future[Any]:
        return self.submit_call(_compute_in_worker, task)

    def submit_call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a function called in the process."""
        future: Future[Any] = self._pool.submit(function, *arguments)
        return future

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)


_compute: Compute | None = None


def _open(open_worker: Callable[[], Compute], threads: int) -> None:
    """Make a fresh process a worker; Ctrl-C is for the process that gave it work."""
    global _compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _compute = open_worker()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would wait for tasks for ever: they see that it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _compute_in_worker(task: Any) -> Any:
    assert _compute is not None
    return _compute(task)
