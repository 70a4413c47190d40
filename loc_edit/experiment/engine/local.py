"""Tasks computed in this process, or side by side in processes of this machine, each with the model in its memory."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

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


class _PipeClosed(Exception):
    """The worker process is gone; an error of a task, of whatever kind, is another thing."""


class _Process(Lane):
    """A worker process at the other end of a pipe, which a thread of this process waits for.

    (A pool of `loky` would do it too, but ends a worker whose memory grows by 300 MB, as it does with a large batch.)
    """

    died = (_PipeClosed,)

    def __init__(self, open_worker: Callable[[], Compute], threads: int) -> None:
        super().__init__()
        self._arguments = (open_worker, threads)
        self._waiting = ThreadPoolExecutor(1)
        self._process: Any = None

    def start(self) -> Future[Any]:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's locks in any state
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_work, args=(other_end, *self._arguments), daemon=True)
        with _interrupts_held():
            self._process.start()
        other_end.close()
        return self._waiting.submit(self._receive)

    def submit(self, task: Any) -> Future[Any]:
        return self._waiting.submit(self._ask, task)

    def _ask(self, task: Any) -> Any:
        try:
            self._pipe.send(task)
        except OSError as error:
            raise _PipeClosed(error) from error
        return self._receive()

    def _receive(self) -> Any:
        try:
            result, task_error = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _PipeClosed("its pipe is closed") from error
        if task_error is not None:
            raise task_error
        return result

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
        self._waiting.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Lets Ctrl-C wait until the block has ended; a process that is started in it never gets one, not even at first."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it in the block would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, open_worker: Callable[[], Compute], threads: int) -> None:
    """What a worker process does: open the worker, then answer one task after another until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gave it work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        compute = open_worker()
        pipe.send((None, None))
    except Exception as error:
        pipe.send((None, error))
        return
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((compute(task), None))
        except Exception as error:
            pipe.send((None, error))


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would compute on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
