"""Lanes: workers side by side, each with a stream of tasks in front of it; a worker that dies is replaced.

The loop is the same for processes of this machine (`local`) and for a Ray cluster (`cluster`), which bring their own
kind of lane.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

log = logging.getLogger(__name__)

Compute = Callable[[Any], Any]
"""Task -> result, in a worker."""

TRIES = 3
"""How many workers a task may end before the run gives up."""
PATIENCE = 60.0
"""Seconds without any result after which it is reported that no worker is ready."""


class WorkerDied(RuntimeError):
    """Workers ended in the middle of a task, again and again; what was written before is kept."""


class Lane(ABC):
    """One worker and the tasks in front of it.

    Attributes:
        tasks: the rest of the stream that the worker is at.
        running: what it was given and has not finished, in order.
        died: the errors by which a future says that the worker is gone.
        ahead: how many tasks the worker has at most, the one that it computes included.
    """

    died: tuple[type[Exception], ...]
    ahead = 1

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()
        self.running: dict[Future[Any], Any] = {}

    @abstractmethod
    def start(self) -> Future[Any]:
        """Start the worker, or a new one in place of one that died; the future is done when it is ready."""

    @abstractmethod
    def submit(self, task: Any) -> Future[Any]:
        """Have a task computed."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker at once: what it has not finished is computed when the run goes on."""

    def take_back(self) -> deque[Any]:
        """All that it has not finished, in order; the first is what its worker was at."""
        unfinished = deque([*self.running.values(), *self.tasks])
        self.running, self.tasks = {}, deque()
        return unfinished


def compute_in_lanes(
    streams: Sequence[Sequence[Any]], lanes: Sequence[Lane], explain: Callable[[], str] = lambda: ""
) -> Iterator[tuple[Any, Any]]:
    """Every task with its result, in the order in which they finish.

    Args:
        streams: tasks; a stream stays with one lane, or goes to another as a whole if the worker is lost.
        lanes: not started yet; they are stopped at the end.
        explain: says why no worker may be ready.

    Raises:
        WorkerDied: a task has ended `TRIES` workers.
    """
    waiting = deque(deque(stream) for stream in streams if stream)
    deaths: Counter[int] = Counter()
    starting: dict[Future[Any], Lane] = {}

    def give(lane: Lane) -> None:
        while len(lane.running) < lane.ahead and (lane.tasks or waiting):
            lane.tasks = lane.tasks or waiting.popleft()
            task = lane.tasks.popleft()
            lane.running[lane.submit(task)] = task

    def replace(lane: Lane, error: Exception) -> None:
        unfinished = lane.take_back()
        culprit = unfinished[0]
        deaths[id(culprit)] += 1
        if deaths[id(culprit)] >= TRIES:
            raise WorkerDied(
                f"{TRIES} workers ended while they computed {culprit} (is memory enough?); "
                "rows finished before are kept, run again to go on"
            ) from error
        reason = str(error).partition("\n")[0]
        log.warning("a worker was lost while it computed %s, which is computed again: %s", culprit, reason)
        waiting.appendleft(unfinished)
        starting[lane.start()] = lane
        for other in lanes:
            if other not in starting.values():
                give(other)

    try:
        starting |= {lane.start(): lane for lane in lanes}
        while waiting or any(lane.running for lane in lanes):
            lane_of = starting | {future: lane for lane in lanes for future in lane.running}
            done = wait(lane_of, PATIENCE, FIRST_COMPLETED).done
            if not done and len(lane_of) == len(starting):
                log.warning("no worker is ready; %s", explain())
            for future in done:
                lane = lane_of[future]
                if future in starting:
                    del starting[future]
                    future.result()  # a worker that cannot start raises here
                    give(lane)
                elif future in lane.running:  # else the worker was lost, and its tasks taken back
                    error = future.exception()
                    if isinstance(error, lane.died):
                        replace(lane, error)
                        continue
                    result, task = future.result(), lane.running.pop(future)
                    give(lane)
                    yield task, result
    finally:
        for lane in lanes:
            lane.stop()
